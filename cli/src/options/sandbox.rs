//! What `create` and `run` can say of a new sandbox.

use super::{
    MachineOptions, NewSandbox, image::Image, main_process::MainProcessOptions, mounts::MountOptions,
    network::NetworkOptions, supervision::SupervisionOptions, workspace::Workspace, workspace::WorkspaceOptions,
};
use crate::failure::Failure;
use clap::Args;
use sandboxvm_manager::Mounts;

/// The options, with those of `P` about processes.
#[derive(Debug, Args)]
pub(crate) struct SandboxOptions<P: Args> {
    #[command(flatten)]
    pub(crate) machine: MachineOptions,
    #[command(flatten)]
    pub(crate) process: P,
    #[command(flatten)]
    pub(crate) main: MainProcessOptions,
    #[command(flatten)]
    pub(crate) supervision: SupervisionOptions,
    #[command(flatten)]
    pub(crate) network: NetworkOptions,
    #[command(flatten)]
    pub(crate) workspace: WorkspaceOptions,
    #[command(flatten)]
    pub(crate) mounts: MountOptions,
}

impl<P: Args> SandboxOptions<P> {
    /// Describes a sandbox that stays, whose processes get no variables.
    pub(crate) fn sandbox(
        &self,
        image: Image,
        workspace: Option<Workspace>,
        mounts: Mounts,
    ) -> Result<NewSandbox, Failure> {
        Ok(NewSandbox {
            image,
            env: Vec::new(),
            services: self.supervision.services(),
            network: self.network.network()?,
            workspace,
            mounts,
            read_only_root: self.mounts.read_only_root(),
            ephemeral: false,
        })
    }
}
