//! `kill`: sends a signal to processes in a sandbox.

use crate::{
    failure::Failure,
    options::{supervision, values::signal},
    runtime,
};
use clap::Args;
use sandboxvm_manager::SignalNumber;

/// Send a signal to processes and their process groups
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Name or ID of the sandbox
    sandbox: String,
    /// IDs of processes, as printed by `exec -d` and `ps`
    #[arg(required = true, value_name = "PID")]
    pids: Vec<u32>,
    /// Signal to send: a name such as TERM, SIGTERM or SIGRTMIN+3, or a number (1-64)
    #[arg(short, long, default_value = "TERM", value_parser = signal)]
    signal: SignalNumber,
}

impl Kill {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async {
            let mut outcome = Ok(0);
            for pid in &self.pids {
                if let Err(error) = sandbox.signal(*pid, self.signal).await {
                    Failure::from(error).report();
                    outcome = Err(Failure::silent(125));
                }
            }
            outcome
        })
    }
}
