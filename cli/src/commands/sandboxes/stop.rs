//! `stop`: ends sandboxes gracefully and keeps their files.

use crate::{
    commands::each::for_each, environment, failure::Failure, options::values::duration, output::progress, runtime,
    stdio, workspace,
};
use clap::Args;
use sandboxvm_manager::Stopped;
use std::time::Duration;

/// Stop sandboxes gracefully and keep their files
#[derive(Debug, Args)]
#[command(
    after_help = "Processes receive SIGTERM, and SIGKILL after --time. If the first command of the sandbox has a stop signal, it \
                  receives that signal, and the other processes receive SIGTERM when it has ended. The changes of a workspace are \
                  stored before the first signal; what processes write later is lost. Logs and files stay until `rm`."
)]
pub(crate) struct Stop {
    /// Names or IDs of sandboxes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Time between the first signal and SIGKILL
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    time: Duration,
}

impl Stop {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        runtime::block_on(for_each(&self.sandboxes, async |reference| {
            let sandbox = manager.find(reference)?;
            workspace::store(&sandbox).await?;
            match progress::during("stopping", sandbox.stop(self.time)).await? {
                Stopped::InOrder => {}
                Stopped::ByForce(cause) => {
                    stdio::notice(format_args!("warning: sandbox {reference} was killed: {cause}"));
                }
                Stopped::Otherwise(reason) => {
                    stdio::notice(format_args!("warning: sandbox {reference} did not stop gracefully: {reason}"));
                }
            }
            stdio::print(&format!("{reference}\n"))
        }))
    }
}
