//! `resume`: resumes the vCPUs of paused sandboxes.

use crate::{commands::each::for_each, failure::Failure, options::supervision, runtime, stdio};
use clap::Args;

/// Resume paused sandboxes
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// Names or IDs of sandboxes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

impl Resume {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        runtime::block_on(for_each(&self.sandboxes, async |reference| {
            supervision::find(reference)?.resume().await?;
            stdio::print(&format!("{reference}\n"))
        }))
    }
}
