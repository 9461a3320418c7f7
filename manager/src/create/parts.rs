//! The files of one machine that nobody shares, and handing them and the shared ones to a new VMM.

use crate::{
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
};
use rustix::fs::OFlags;
use sandboxvm_protocol::{
    ids::GuestCid,
    vmm::{ConsoleConfig, DiskConfig, LaunchConfig, MachineSource, VsockConfig},
};
use std::{fs::File, os::unix::net::UnixListener, path::Path};

/// The serial console's log: a boot says little, a panic some kilobytes.
const CONSOLE_LOG_LIMIT: u64 = 1 << 20;

/// Bounds what is in a sandbox's control group, as far as the group has controllers. True when that keeps the sandbox's share
/// of the processor.
pub(crate) fn bound(group: &Group, record: &SandboxRecord) -> bool {
    // A group without the controller bounds nothing, and does no harm: resource limits bound the process itself.
    let _ = group.bound_memory(record.memory_bytes);
    record.limits.cpu_share.is_some_and(|share| cpu_share::bound(group, share))
}

/// A machine's own files, open. Our copy of the lock closes when this value goes: from then on it is the VMM's alone.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) lock: File,
    pub(crate) status: File,
    pub(crate) console: File,
    pub(crate) vmm_log: File,
    pub(crate) control: UnixListener,
    pub(crate) vsock: UnixListener,
}

/// How a machine comes to life, and from which files.
#[derive(Debug)]
pub(crate) struct MachineFiles<'a> {
    pub(crate) source: SourceFiles<'a>,
    pub(crate) agent: &'a File,
    pub(crate) image: &'a File,
    pub(crate) template: &'a File,
    /// Oldest first; the last is empty.
    pub(crate) layers: &'a [File],
    pub(crate) tie_to_launcher: bool,
    /// Run at once, or wait to be told.
    pub(crate) start: bool,
}

/// See [`MachineFiles`].
#[derive(Debug)]
pub(crate) enum SourceFiles<'a> {
    Boot { kernel: &'a File },
    Snapshot { state: &'a File, memory: &'a [File] },
}

impl Parts {
    /// Makes them in a directory that is new.
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

    /// Makes them anew in the directory of a sandbox whose VMM has ended; the VMM's own log goes on.
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

    /// Starts the VMM's process, early: it takes as long to leave the host as the rest of the sandbox takes to make. It is
    /// bounded and can be ended, with all that it will start, before it knows what it is for.
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

    /// Tells a waiting VMM its machine.
    pub(crate) fn hand_over(
        self,
        vmm: &VmmProcess,
        record: &SandboxRecord,
        machine: &MachineFiles<'_>,
    ) -> Result<(), LaunchError> {
        let mut files = LaunchFiles::default();
        let source = match &machine.source {
            SourceFiles::Boot { kernel } => {
                MachineSource::Boot { kernel: files.add(*kernel), cmdline_extra: String::new() }
            }
            SourceFiles::Snapshot { state, memory } => MachineSource::Snapshot {
                state: files.add(*state),
                memory: memory.iter().map(|file| files.add(file)).collect(),
            },
        };
        let config = LaunchConfig {
            sandbox: record.id.clone(),
            vcpus: record.vcpus,
            memory: record.memory_bytes,
            source,
            disks: vec![
                DiskConfig::ReadOnly { image: files.add(machine.agent) },
                DiskConfig::ReadOnly { image: files.add(machine.image) },
                DiskConfig::Writable {
                    template: files.add(machine.template),
                    layers: machine.layers.iter().map(|layer| files.add(layer)).collect(),
                },
            ],
            vsock: VsockConfig { listener: files.add(&self.vsock), cid: GuestCid::DEFAULT },
            console: ConsoleConfig { log: files.add(&self.console), limit: CONSOLE_LOG_LIMIT },
            control: files.add(&self.control),
            status: files.add(&self.status),
            lock: files.add(&self.lock),
            // One with a limit of the VMM's is started once that is kept (`started`).
            start: machine.start && record.limits.of_the_vmm().is_empty(),
            tie_to_launcher: machine.tie_to_launcher,
        };
        vmm.hand_over(&config, &files)
    }
}
