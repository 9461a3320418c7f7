//! `wait`: waits until a process in a sandbox ends.

use crate::{failure::Failure, options::supervision, runtime};
use clap::Args;

/// Wait for a process to end and exit with its exit code
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: that of the process; 128+N if signal N killed it; 124 on timeout; 125 if sandboxvm failed."
)]
pub(crate) struct Wait {
    /// Name or ID of the sandbox
    sandbox: String,
    /// ID of the process, as printed by `exec -d` and `ps`
    pid: u32,
}

impl Wait {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async { Ok(sandbox.wait(self.pid).await?.shell_code()) })
    }
}
