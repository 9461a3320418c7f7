//! `create`: creates a sandbox that stays until it is removed.

use crate::{
    failure::Failure,
    options::{EnvOptions, MachineOptions, network::NetworkOptions, supervision::SupervisionOptions},
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::Args;

/// Create a sandbox, wait until it has booted, and print its ID
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    env: EnvOptions,
    #[command(flatten)]
    supervision: SupervisionOptions,
    #[command(flatten)]
    network: NetworkOptions,
}

impl Create {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let env = self.env.texts()?;
            let (services, network) = (self.supervision.services(), self.network.network()?);
            let Some(started) = self.machine.start(env, services, network, false, true, &mut signals).await? else {
                return Ok(signals.exit_code());
            };
            let sandbox = self.supervision.keep_up(started).await?.detach();
            stdio::print(&format!("{}\n", sandbox.id()))?;
            Ok(0)
        })
    }
}
