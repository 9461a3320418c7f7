//! `wait`: the end of a process in a sandbox.

use crate::{failure::Failure, runtime, supervision};
use clap::Args;

/// Wait until a process in a sandbox has ended, and exit with its code
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: the process's own; 128+N killed by signal N; 124 out of time; 125 sandboxvm failed."
)]
pub(crate) struct Wait {
    /// Name or ID of the sandbox
    sandbox: String,
    /// ID of the process, as `exec -d` and `ps` print it
    pid: u32,
}

impl Wait {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async { Ok(sandbox.wait(self.pid).await?.shell_code()) })
    }
}
