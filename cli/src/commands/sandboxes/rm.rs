//! `rm`: removes sandboxes and all their files.

use crate::{commands::each::for_each, environment, failure::Failure, runtime, stdio, workspace};
use clap::Args;

/// Remove sandboxes and all their files
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Names or IDs of sandboxes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Kill running sandboxes first
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        runtime::block_on(for_each(&self.sandboxes, async |reference| {
            // The files of an interrupted apply are in a directory of the user. A sandbox that cannot be
            // read has none, and can be removed too.
            if let Ok(found) = manager.find(reference)
                && let Err(failure) = workspace::settle(&found)
            {
                if !self.force {
                    return Err(failure);
                }
                failure.report();
            }
            manager.remove(reference, self.force).await?;
            stdio::print(&format!("{reference}\n"))
        }))
    }
}
