//! `reset`: returns a sandbox to its start or to a snapshot.

use crate::{
    environment,
    failure::Failure,
    options::{supervision, values::name},
    output::progress,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{SandboxName, SandboxSpec};

/// Reset a sandbox to its start or to a snapshot
#[derive(Debug, Args)]
#[command(after_help = "Memory, processes and disk are restored. Everything since then is lost.")]
pub(crate) struct Reset {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Name of a snapshot to restore [default: the state in which the sandbox started]
    #[arg(value_parser = name)]
    snapshot: Option<SandboxName>,
}

impl Reset {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        let bundle = environment::bundle(None, None);
        let boot_timeout = SandboxSpec::default().boot_timeout;
        runtime::block_on(async {
            // A sandbox that had ended runs again and needs a supervisor.
            let is_running = || supervision::see_to(&sandbox);
            let reset = sandbox.reset(&bundle, self.snapshot.as_ref(), boot_timeout, is_running);
            progress::during("resetting", reset).await?;
            stdio::print(&format!("{}\n", self.sandbox))?;
            Ok(0)
        })
    }
}
