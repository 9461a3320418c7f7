//! `discard`: forgets the changes of a sandbox's workspace, with the sandbox.

use crate::{environment, failure::Failure, runtime, stdio, workspace};
use clap::Args;
use sandboxvm_manager::State;

/// Remove a sandbox with the changes of its workspace
#[derive(Debug, Args)]
#[command(after_help = "Works on a stopped sandbox. The directory on the host is not changed: what was applied stays.")]
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
            let hint = format!("run `sandboxvm stop {}` first", self.sandbox);
            return Err(
                Failure::new(format_args!("cannot discard {}: its machine has not ended", self.sandbox)).hinted(hint)
            );
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
