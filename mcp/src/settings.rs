//! The settings of a server. Read by `scope` and the tools; a client cannot change them.

use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::{Manager, SupervisorProgram};
use sandboxvm_protocol::identity::{SandboxId, SandboxName};

/// The settings of a server.
#[derive(Debug)]
pub struct Settings {
    /// The home of the sandboxes.
    pub manager: Manager,
    /// The bundle that new sandboxes boot.
    pub bundle: Bundle,
    /// The program that ends sandboxes that have expired.
    pub supervisor: SupervisorProgram,
    /// Existing sandboxes that clients can use, but not remove.
    pub sandboxes: Vec<SandboxId>,
    /// Existing snapshots that clients can create sandboxes from.
    pub templates: Vec<SandboxName>,
    /// Maximum number of sandboxes that the server has created at a time.
    pub max_sandboxes: usize,
    /// Keeps what was created when the server ends.
    pub keep: bool,
}
