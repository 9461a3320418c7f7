//! `create`: creates a sandbox that stays until it is removed.

use crate::{
    failure::Failure,
    options::{
        EnvOptions, MachineOptions, NewSandbox,
        main_process::MainProcessOptions,
        mounts::MountOptions,
        network::NetworkOptions,
        supervision::SupervisionOptions,
        workspace::{WorkspaceOptions, owner},
    },
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{OnDisconnect, ProcessSpec};

/// Create a sandbox, wait until it has booted, and print its ID
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    env: EnvOptions,
    #[command(flatten)]
    main: MainProcessOptions,
    #[command(flatten)]
    supervision: SupervisionOptions,
    #[command(flatten)]
    network: NetworkOptions,
    #[command(flatten)]
    workspace: WorkspaceOptions,
    #[command(flatten)]
    mounts: MountOptions,
}

impl Create {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        runtime::block_on(async {
            let (mounts, read_only_root) = (self.mounts.mounts()?, self.mounts.read_only_root());
            let mut signals = Signals::catch()?;
            let env = self.env.texts()?;
            let Some(image) = self.machine.image(&mut signals).await? else { return Ok(signals.exit_code()) };
            // As with `run -d`, the process that the image is made for runs from the beginning.
            let spec = match image.command_line(None, &[]).as_slice() {
                [] => None,
                command => {
                    let spec = ProcessSpec::builder(command).on_disconnect(OnDisconnect::Keep).build()?;
                    Some(self.main.apply(spec, command, &image)?)
                }
            };
            let mounts = mounts.with_owner(owner(image.user().as_deref()));
            let workspace = self.workspace.copy_in(image.user().as_deref(), &mut signals).await?;
            if self.workspace.is_given() && workspace.is_none() {
                return Ok(signals.exit_code());
            }
            let (services, network) = (self.supervision.services(), self.network.network()?);
            let new = NewSandbox { image, env, services, network, workspace, mounts, read_only_root, ephemeral: false };
            let Some(started) = self.machine.start(new, true, &mut signals).await? else {
                return Ok(signals.exit_code());
            };
            let started = self.supervision.keep_up(started).await?;
            if let Some(spec) = spec
                && let Err(error) = super::run::begin(started.sandbox(), spec).await
            {
                let failure = Failure::of_exec(&error);
                started.finish().await?;
                return Err(failure);
            }
            let sandbox = started.detach();
            stdio::print(&format!("{}\n", sandbox.id()))?;
            Ok(0)
        })
    }
}
