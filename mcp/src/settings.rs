//! What a server may do, as its caller decided. Read by `scope` and the tools; nothing a client says changes it.

use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::{Manager, SandboxId, SandboxName, SupervisorProgram};

/// What a server may do.
#[derive(Debug)]
pub struct Settings {
    /// The sandboxes' home.
    pub manager: Manager,
    /// What new sandboxes boot from.
    pub bundle: Bundle,
    /// What keeps up a time to live.
    pub supervisor: SupervisorProgram,
    /// Sandboxes that were there before and may be used, though not removed.
    pub sandboxes: Vec<SandboxId>,
    /// Snapshots that were there before and may be gone on from.
    pub templates: Vec<SandboxName>,
    /// Most sandboxes that this server has made at a time.
    pub max_sandboxes: usize,
    /// What was made stays when the server ends.
    pub keep: bool,
}
