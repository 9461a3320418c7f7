//! `network set`: replaces what a sandbox reaches, while it runs.

use crate::{
    environment,
    failure::Failure,
    options::{network::NetworkOptions, supervision},
    runtime,
};
use clap::Args;

/// Replace what a sandbox reaches on the network
#[derive(Debug, Args)]
#[command(
    after_help = "The change is in force when the command returns. Connections that are not allowed any more are cut; all of \
                  them are if the proxy is another one. A \
                  sandbox that was created without a network cannot get one."
)]
pub(crate) struct Set {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Add the rules, resolvers, names and proxy to those that the sandbox has
    #[arg(long)]
    add: bool,
    #[command(flatten)]
    network: NetworkOptions,
}

impl Set {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        if self.network.is_empty() {
            return Err(
                Failure::new("nothing to set").hinted("give --net, --allow, --deny, --proxy or --policy".to_owned())
            );
        }
        let found = environment::manager()?.find(&self.sandbox)?;
        let before = if self.add { found.network()? } else { None };
        let network = self.network.changed(before)?;
        let sandbox = environment::manager()?.with_network(network.operator).find(&self.sandbox)?;
        let program = supervision::program()?;
        runtime::block_on(async { Ok(sandbox.set_network(&program, &network.spec).await?) })?;
        Ok(0)
    }
}
