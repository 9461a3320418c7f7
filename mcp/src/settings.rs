//! The settings of a server. Read by `scope` and the tools; a client cannot change them.

use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::{
    BootableImage, Manager, Permitted, Reach, SandboxId, SandboxName, SecretSpec, SupervisorProgram,
};

use std::collections::BTreeMap;

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
    /// Container images that clients can create sandboxes from, by the names that clients use.
    pub images: BTreeMap<String, BootableImage>,
    /// Maximum number of sandboxes that the server has created at a time.
    pub max_sandboxes: usize,
    /// The most that clients can ask for on the network.
    pub network: Permitted,
    /// Secrets that clients can ask for by name. They go to their hosts only, and no client sees a value.
    pub secrets: Vec<SecretSpec>,
    /// Keeps what was created when the server ends.
    pub keep: bool,
}

/// Says what the user permits.
pub(crate) fn permits(permitted: &Permitted, secrets: &[SecretSpec]) -> String {
    let secrets: Vec<String> =
        secrets.iter().map(|secret| format!("{} for {}", secret.name, secret.hosts.join(", "))).collect();
    let of_secrets = match &secrets[..] {
        [] => String::new(),
        secrets => format!("; secrets that can be asked for: {}", secrets.join("; ")),
    };
    format!("{}{of_secrets}", reaches(permitted))
}

fn reaches(permitted: &Permitted) -> String {
    let rules = permitted.allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match permitted.reach {
        Reach::Nothing => "the user permits no network".to_owned(),
        Reach::Listed => format!("the user permits reach allow with rules within {rules}"),
        Reach::Public if rules.is_empty() => "the user permits reach public".to_owned(),
        Reach::Public => format!("the user permits reach public, and {rules}"),
    }
}
