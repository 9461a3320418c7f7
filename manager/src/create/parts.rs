//! The files of one machine that it does not share with others. Creates them, and hands them and
//! the shared files to a new VMM.

use crate::{
    create::beginning::Source,
    home::{
        directory::{CONSOLE_LOG, CONTROL_SOCKET, DirectoryError, STATUS, SandboxDirectory, VMM_LOG, VSOCK_SOCKET},
        layout::Home,
    },
    limits::cpu_share,
    record::SandboxRecord,
    vmm::{
        descriptors::{LaunchError, LaunchFiles},
        family,
        group::{self, Group},
        launch::VmmProcess,
        lock,
    },
    volumes::open::OpenVolume,
};
use rustix::fs::OFlags;
use sandboxvm_protocol::{
    ids::GuestCid,
    network::{MacAddress, Mtu},
    vmm::{ConsoleConfig, DeviceConfig, DiskConfig, LaunchConfig, MachineSource, NetConfig, VsockConfig},
};
use std::{fs::File, os::unix::net::UnixListener, path::Path};

/// Size limit of the log of the serial console. A boot prints little, a panic some kilobytes.
const CONSOLE_LOG_LIMIT: u64 = 1 << 20;

/// The network card. It is the same in every machine, because each has a separate network.
const CARD: DeviceConfig = DeviceConfig::Net(NetConfig { mac: MacAddress::GUEST, mtu: Mtu::GUEST });

/// Tells the agent not to mount a file system in memory over `/run`.
const RUN_ON_DISK: &str = "sandboxvm.run=disk";

/// Limits the processes in the control group of a sandbox, as far as the group has controllers.
/// Returns true if the group enforces the sandbox's share of the processor.
pub(crate) fn bound(group: &Group, record: &SandboxRecord) -> bool {
    // A group without the memory controller limits nothing and does no harm: resource limits apply
    // to the process itself.
    let _ = group.bound_memory(record.memory_bytes);
    record.limits.cpu_share.is_some_and(|share| cpu_share::bound(group, share))
}

/// The files of one machine, open. Our copy of the lock is closed when this value is dropped: from
/// then on only the VMM holds the lock.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) lock: File,
    pub(crate) status: File,
    pub(crate) console: File,
    pub(crate) vmm_log: File,
    pub(crate) control: UnixListener,
    pub(crate) vsock: UnixListener,
}

/// How a machine starts, and from which files.
#[derive(Debug)]
pub(crate) struct MachineFiles<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) agent: &'a File,
    pub(crate) image: &'a File,
    pub(crate) template: &'a File,
    /// Oldest first; the last is empty.
    pub(crate) layers: &'a [File],
    /// Of its workspace, bottom up.
    pub(crate) slots: &'a [File],
    /// In the order of the record.
    pub(crate) volumes: &'a [OpenVolume],
    pub(crate) tie_to_launcher: bool,
    /// Run immediately, or wait for a request.
    pub(crate) start: bool,
}

impl Parts {
    /// Creates the files in a new directory.
    pub(crate) fn make(directory: &SandboxDirectory) -> Result<Self, DirectoryError> {
        Ok(Self {
            lock: lock::create(directory)?,
            status: directory.create_file(STATUS)?,
            console: directory.create_file(CONSOLE_LOG)?,
            vmm_log: directory.create_file(VMM_LOG)?,
            control: directory.listen(CONTROL_SOCKET)?,
            vsock: directory.listen(VSOCK_SOCKET)?,
        })
    }

    /// Creates the files again in the directory of a sandbox whose VMM has ended. The log of the
    /// VMM is continued.
    pub(crate) fn renew(directory: &SandboxDirectory) -> Result<Self, DirectoryError> {
        let lock = lock::take_again(directory)?;
        for name in [STATUS, CONSOLE_LOG, CONTROL_SOCKET, VSOCK_SOCKET, family::FILE] {
            directory.unlink(name)?;
        }
        Ok(Self {
            lock,
            status: directory.create_file(STATUS)?,
            console: directory.create_file(CONSOLE_LOG)?,
            vmm_log: directory.open_file(VMM_LOG, OFlags::WRONLY | OFlags::APPEND)?,
            control: directory.listen(CONTROL_SOCKET)?,
            vsock: directory.listen(VSOCK_SOCKET)?,
        })
    }

    /// Starts the process of the VMM early, because leaving the host takes it as long as creating
    /// the rest of the sandbox. Before the process receives its machine it is already limited, and
    /// can be ended together with all that it will start.
    pub(crate) fn spawn_vmm(
        &self,
        home: &Home,
        directory: &SandboxDirectory,
        record: &SandboxRecord,
        program: &Path,
    ) -> Result<VmmProcess, LaunchError> {
        let group = Group::take(home, directory)?;
        let has_share = group.as_ref().is_some_and(|group| bound(group, record));
        let vmm = VmmProcess::spawn(program, self.vmm_log.try_clone()?, group.as_ref())?;
        if !vmm.is_in_group {
            if let Some(group) = group {
                Group::remove(group.path());
                directory.unlink(group::LINK)?;
            }
            family::write_down(directory, vmm.pid, false)?;
        }
        cpu_share::hold(
            directory,
            &record.id,
            record.memory_bytes,
            record.limits.cpu_share,
            vmm.pid,
            has_share && vmm.is_in_group,
        )?;
        Ok(vmm)
    }

    /// Sends a waiting VMM its machine.
    pub(crate) fn hand_over(
        self,
        vmm: &VmmProcess,
        record: &SandboxRecord,
        machine: &MachineFiles<'_>,
    ) -> Result<(), LaunchError> {
        let mut files = LaunchFiles::default();
        let source = match &machine.source {
            Source::Kernel(kernel) => {
                // In a container image, `/run` is a directory as any other.
                let cmdline_extra = if record.image_defaults.is_some() { RUN_ON_DISK } else { "" }.to_owned();
                MachineSource::Boot { kernel: files.add(*kernel), cmdline_extra }
            }
            Source::Snapshot { state, memory } => MachineSource::Snapshot {
                state: files.add(*state),
                memory: memory.iter().map(|file| files.add(file)).collect(),
            },
        };
        let mut devices = vec![
            DeviceConfig::Block(DiskConfig::ReadOnly { image: files.add(machine.agent) }),
            DeviceConfig::Block(DiskConfig::ReadOnly { image: files.add(machine.image) }),
            DeviceConfig::Block(DiskConfig::Writable {
                template: files.add(machine.template),
                layers: machine.layers.iter().map(|layer| files.add(layer)).collect(),
            }),
        ];
        devices
            .extend(machine.slots.iter().map(|slot| DeviceConfig::Block(DiskConfig::Slot { file: files.add(slot) })));
        devices.extend(machine.volumes.iter().map(|volume| {
            let (file, read_only) = (files.add(volume.file()), volume.is_read_only());
            DeviceConfig::Block(DiskConfig::Volume { file, read_only })
        }));
        devices.extend([
            DeviceConfig::Rng,
            DeviceConfig::Vsock(VsockConfig { listener: files.add(&self.vsock), cid: GuestCid::DEFAULT }),
            DeviceConfig::Balloon,
        ]);
        devices.extend(record.network_card.then_some(CARD));
        let config = LaunchConfig {
            sandbox: record.id.clone(),
            vcpus: record.vcpus,
            memory: record.memory_bytes,
            source,
            devices,
            console: ConsoleConfig { log: files.add(&self.console), limit: CONSOLE_LOG_LIMIT },
            control: files.add(&self.control),
            status: files.add(&self.status),
            lock: files.add(&self.lock),
            // If the VMM has to enforce limits, it is started once it has accepted them
            // (`started`).
            start: machine.start && record.limits.of_the_vmm().is_empty(),
            tie_to_launcher: machine.tie_to_launcher,
        };
        vmm.hand_over(&config, &files)
    }
}
