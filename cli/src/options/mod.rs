//! Options that several commands share.

pub(crate) mod image;
pub(crate) mod limits;
pub(crate) mod main_process;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod permitted;
mod process;
mod sandbox;
pub(crate) mod supervision;
pub(crate) mod values;
pub(crate) mod workspace;

pub(crate) use process::{EnvOptions, ProcessOptions, is_raw};
pub(crate) use sandbox::SandboxOptions;

use crate::{
    environment,
    failure::Failure,
    options::{
        image::{Image, ImageOptions},
        limits::LimitOptions,
        network::Network,
        values::{disk, memory, name, vcpus},
        workspace::Workspace,
    },
    output::progress,
    process_io::signals::Signals,
};
use clap::Args;
use sandboxvm_images::template::DiskSize;
use sandboxvm_manager::{
    MemorySize, Mounts, SandboxName, SandboxSpec, StartFrom, StartedSandbox, SupervisionSpec, VcpuCount,
    over_environment_of_image,
};
use std::path::PathBuf;

/// The machine of a new sandbox.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineOptions {
    /// Name of the sandbox: 1-63 characters from a-z, 0-9 and '-', not starting with '-' [default: none, only an ID]
    #[arg(long, allow_hyphen_values = true, value_parser = name)]
    name: Option<SandboxName>,
    /// Guest memory (64M-64G)
    #[arg(short, long, value_name = "SIZE", default_value = "256M", allow_hyphen_values = true, value_parser = memory)]
    memory: MemorySize,
    /// Number of vCPUs (1-8)
    #[arg(short, long, value_name = "N", default_value = "1", allow_hyphen_values = true, value_parser = vcpus)]
    cpus: VcpuCount,
    /// Size of the writable disk (64M-1T); it takes up space on the host only as it is written
    #[arg(long, value_name = "SIZE", default_value = "2G", allow_hyphen_values = true, value_parser = disk)]
    disk: DiskSize,
    /// Guest kernel to boot, an uncompressed x86-64 vmlinux [default: the bundle's]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Boot the kernel instead of restoring the ready snapshot of a freshly booted machine
    #[arg(long)]
    cold: bool,
    /// Restore from this snapshot; memory, vCPUs, disk and image are those of the snapshot
    #[arg(long, value_name = "SNAPSHOT", value_parser = name,
          conflicts_with_all = ["cold", "memory", "cpus", "disk", "kernel", "image"])]
    from: Option<SandboxName>,
    #[command(flatten)]
    image: ImageOptions,
    #[command(flatten)]
    limits: LimitOptions,
}

/// What a new sandbox has beside its machine.
#[derive(Debug)]
pub(crate) struct NewSandbox {
    pub(crate) image: Image,
    /// `KEY=VALUE` for every process.
    pub(crate) env: Vec<String>,
    pub(crate) services: SupervisionSpec,
    pub(crate) network: Option<Network>,
    pub(crate) workspace: Option<Workspace>,
    pub(crate) mounts: Mounts,
    pub(crate) read_only_root: bool,
    /// Whether it ends with this program.
    pub(crate) ephemeral: bool,
}

impl MachineOptions {
    fn start_from(&self) -> StartFrom {
        match &self.from {
            Some(snapshot) => StartFrom::Snapshot(snapshot.clone()),
            None if self.cold => StartFrom::Boot,
            None => StartFrom::Ready,
        }
    }

    /// Gives the sandbox a name, unless it has one.
    pub(crate) fn name_otherwise(&mut self, name: Option<SandboxName>) {
        self.name = self.name.take().or(name);
    }

    /// Finds the image, and pulls it if need be. Returns `None` if a signal arrived first.
    pub(crate) async fn image(&self, signals: &mut Signals) -> Result<Option<Image>, Failure> {
        self.image.find(signals).await
    }

    /// Starts a sandbox and waits until it runs; with `settled`, also until it has its name and the time, which otherwise the
    /// first exec sends it, and its mounts, unless some of them need a supervisor. Returns `None`, and leaves nothing behind, if a signal arrived first.
    pub(crate) async fn start(
        &self,
        new: NewSandbox,
        settled: bool,
        signals: &mut Signals,
    ) -> Result<Option<StartedSandbox>, Failure> {
        let NewSandbox { image, env, services, network, workspace, mounts, read_only_root, ephemeral } = new;
        let settled = settled && !mounts.has_shares();
        let mut manager = environment::manager()?;
        let bundle = environment::bundle(self.kernel.clone(), image.file.clone());
        let network = network.map(|Network { spec, operator }| {
            manager = manager.clone().with_network(operator);
            spec
        });
        let spec = SandboxSpec {
            name: self.name.clone(),
            vcpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            start_from: self.start_from(),
            env: over_environment_of_image(image.env.clone(), env),
            image_defaults: image.defaults.clone(),
            ephemeral,
            limits: self.limits.wanted(),
            services,
            network,
            workspace: workspace.as_ref().map(|workspace| workspace.spec.clone()),
            mounts,
            read_only_root,
            ..SandboxSpec::default()
        };
        let starting = tokio::select! {
            // The first machine of its kind boots during this call.
            started = progress::during("starting", manager.start(&bundle, &spec)) => started,
            _ = signals.next() => return Ok(None),
        };
        let mut started = starting?;
        let ready = tokio::select! {
            ready = progress::during("booting", async {
                if settled { started.settled().await } else { started.ready().await }
            }) => Some(ready),
            _ = signals.next() => None,
        };
        match ready {
            Some(Ok(())) => {
                limits::warn(started.sandbox(), &[]);
                network::warn_of_no_link(started.sandbox());
                Ok(Some(started))
            }
            Some(Err(error)) => {
                started.finish().await?;
                Err(error.into())
            }
            None => {
                started.finish().await?;
                Ok(None)
            }
        }
    }
}
