//! `exec`: runs a command in a running sandbox.

use crate::{
    failure::Failure,
    options::{ProcessOptions, supervision},
    process_io,
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::OnDisconnect;
use std::ffi::OsString;

/// Run a command in a running sandbox
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: that of the command; 128+N if signal N killed it; 124 on timeout; 125 if sandboxvm \
                  failed; 126 if the command is not executable; 127 if it was not found."
)]
pub(crate) struct Exec {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Command to run, and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    process: ProcessOptions,
    /// Print the ID of the process and leave it running; use it with `attach`, `logs`, `wait` and `kill`
    #[arg(short, long, help_heading = "Process")]
    detach: bool,
}

impl Exec {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        if self.detach {
            return self.detached();
        }
        let attendance = self.process.attendance()?;
        let spec = self.process.spec(&self.command, OnDisconnect::Kill)?;
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            process_io::run(&sandbox, spec, &attendance, &mut signals, || ()).await
        })
    }

    fn detached(self) -> Result<u8, Failure> {
        let spec = self.process.spec(&self.command, OnDisconnect::Keep)?;
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async {
            let exec = sandbox.exec(spec).await.map_err(|error| Failure::of_exec(&error))?;
            stdio::print(&format!("{}\n", exec.pid))?;
            Ok(0)
        })
    }
}
