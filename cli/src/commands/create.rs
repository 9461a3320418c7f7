//! `create`: a sandbox that stays until it is removed.

use crate::{
    environment,
    failure::Failure,
    options::{EnvOptions, MachineOptions},
    progress, runtime,
    signals::Signals,
    stdio,
};
use clap::Args;

/// Create a sandbox, wait until it has booted, and print its ID
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    env: EnvOptions,
}

impl Create {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let manager = environment::manager()?;
            let bundle = environment::bundle(self.machine.kernel.clone(), self.machine.image.clone());
            let spec = self.machine.spec(self.env.texts()?, false);
            let sandbox = tokio::select! {
                started = progress::during("booting", manager.create(&bundle, &spec)) => started?.detach(),
                _ = signals.next() => return Ok(signals.exit_code()),
            };
            stdio::print(&format!("{}\n", sandbox.id()))?;
            Ok(0)
        })
    }
}
