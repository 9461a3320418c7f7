//! `pause`: stops the vCPUs of sandboxes.

use crate::{commands::each::for_each, failure::Failure, options::supervision, runtime, stdio};
use clap::Args;

/// Pause sandboxes: none of their vCPUs runs until they are resumed
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Names or IDs of sandboxes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

impl Pause {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        runtime::block_on(for_each(&self.sandboxes, async |reference| {
            supervision::find(reference)?.pause().await?;
            stdio::print(&format!("{reference}\n"))
        }))
    }
}
