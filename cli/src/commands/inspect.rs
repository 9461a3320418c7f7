//! `inspect`: everything that is known of sandboxes, as JSON.

use crate::{environment, failure::Failure, stdio};
use clap::Args;
use sandboxvm_manager::{SandboxRecord, State, SupervisionStatus};
use sandboxvm_protocol::vmm::VmStatus;
use serde::Serialize;
use std::path::PathBuf;

/// Show everything known of one or more sandboxes, as JSON
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Names or IDs of sandboxes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

#[derive(Serialize)]
struct Details {
    #[serde(flatten)]
    record: SandboxRecord,
    #[serde(flatten)]
    state: State,
    directory: PathBuf,
    /// Limits that are not in force, and why.
    unkept_limits: Vec<String>,
    /// What the VMM last said of itself; of a sandbox that does not run, how it was.
    vmm: Option<VmStatus>,
    /// Ports and rules.
    supervision: Option<SupervisionStatus>,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        let mut details = Vec::new();
        for reference in &self.sandboxes {
            let sandbox = manager.find(reference)?;
            details.push(Details {
                record: sandbox.record().clone(),
                state: sandbox.state()?,
                directory: sandbox.path(),
                unkept_limits: sandbox.unkept_limits(),
                vmm: sandbox.vmm_status()?,
                supervision: sandbox.supervision()?,
            });
        }
        stdio::print(&format!("{}\n", serde_json::to_string_pretty(&details)?))?;
        Ok(0)
    }
}
