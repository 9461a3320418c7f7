//! `discard`: forgets the changes of a sandbox's workspace, with the sandbox.

use crate::{environment, failure::Failure, runtime, stdio, workspace};
use clap::Args;
use sandboxvm_manager::State;

/// Remove a sandbox with the changes of its workspace
#[derive(Debug, Args)]
#[command(after_help = "The directory on the host keeps what it has, also what was applied.")]
pub(crate) struct Discard {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Remove without asking. Needed without a terminal
    #[arg(short, long)]
    yes: bool,
}

impl Discard {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = workspace::find(&self.sandbox)?;
        if !matches!(sandbox.state()?, State::Exited { .. } | State::Dead) {
            let hint = format!("sandboxvm stop {}", self.sandbox);
            return Err(Failure::new(format_args!("sandbox {} is running", self.sandbox)).hinted(hint));
        }
        if !workspace::agrees(&format!("remove {} with its changes?", self.sandbox), self.yes)? {
            return Err(Failure::new("nothing was removed"));
        }
        runtime::block_on(async {
            environment::manager()?.remove(sandbox.id().as_str(), false).await?;
            stdio::print(&format!("{}\n", self.sandbox))?;
            Ok(0)
        })
    }
}
