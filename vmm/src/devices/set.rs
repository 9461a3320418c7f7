//! The devices of a machine: which kinds there are, in which order the guest sees them, and what a
//! copy of the machine inherits. The machine and the event loop go through this and name no device.
//!
//! # How to add a device
//!
//! 1. Add a variant to `DeviceConfig` in `protocol/src/vmm/devices.rs` and, if a copy of a machine
//!    or a reset gives the device a file, one to `ChildDevice` or `ResetDevice`. Append it, and raise
//!    the version of the wire.
//! 2. Write the device in a folder beside the others in `devices/virtio`: a [`VirtioDevice`] (what
//!    the guest sees, its saved state, how that is restored) and a [`DeviceKind`] (what it takes from
//!    the launch frame, its system calls, what a copy inherits).
//! 3. Append its kind to [`KINDS`]. The position decides its address and its interrupt: at the end,
//!    machines without the device, and all their snapshots, are as they were.
//!
//! The manager launches the device in `create/parts.rs`, and sends the files of copies and resets in
//! `lifecycle/fork/` and `lifecycle/reset/`.
//!
//! A machine has only the devices of its launch frame, so one that most machines do without costs
//! these nothing. CONTRIBUTING.md says which attacks and fuzz targets a device comes with.

use super::{
    kind::{BuildError, DeviceKind, HostSide, Limit, SystemCalls, UnbuiltDevice},
    virtio::{
        balloon::BalloonKind,
        block::{BlockKind, DisksError, PreparedDisks, WritableDisks},
        device::{DeviceType, VirtioDevice},
        net::{NetKind, NetworkCard},
        rng::RngKind,
        transport::TransportState,
        vsock::VsockKind,
    },
};
use crate::{
    channel::descriptors::{DescriptorError, ReceivedFds},
    confine::DeviceCalls,
    memory::released::ReleasedPages,
    process::failure::kind_of,
};
use sandboxvm_protocol::vmm::{ChildDevice, DeviceConfig, RefusalKind, ResetDevice};
use std::{
    fmt, io,
    os::fd::{OwnedFd, RawFd},
    sync::Arc,
};

/// All kinds of devices, in the order in which a guest has them. Append only: see the module.
pub static KINDS: [&dyn DeviceKind; 5] = [&BlockKind, &RngKind, &VsockKind, &BalloonKind, &NetKind];

/// Why a machine cannot have these devices.
#[derive(Debug, thiserror::Error)]
pub enum DeviceSetError {
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
    /// More devices of one kind than a machine has.
    #[error("a machine has at most {limit} {device:?} devices, and {given} are given")]
    TooMany {
        /// Kind of device.
        device: DeviceType,
        /// Number in the launch frame.
        given: usize,
        /// Maximum.
        limit: usize,
    },
    /// A device that no kind takes.
    #[error("{0} of the devices are of a kind that this VMM does not have")]
    UnknownKind(usize),
    /// A copy lacks a file of a device, or has one for a device that does not exist.
    #[error("the files that are given for a copy do not fit the devices of the machine: {0}")]
    Copy(&'static str),
    /// A device cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The host does not say how large a disk is.
    #[error("cannot read the size of a disk's template: {0}")]
    Size(io::Error),
}

impl DeviceSetError {
    /// Returns the kind of refusal that a client receives.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Fd(_) | Self::TooMany { .. } | Self::UnknownKind(_) | Self::Copy(_) => RefusalKind::BadRequest,
            Self::Build(BuildError::Host { source, .. }) | Self::Size(source) => kind_of(source),
            Self::Build(BuildError::Disk(_)) => RefusalKind::BadSnapshot,
        }
    }
}

/// Returns the system calls of all kinds of devices.
#[must_use]
pub fn system_calls() -> DeviceCalls {
    let of = |calls: fn(SystemCalls) -> &'static [libc::c_long]| {
        KINDS.iter().flat_map(|kind| calls(kind.system_calls())).copied().collect()
    };
    DeviceCalls { event_loop: of(|calls| calls.event_loop), vcpu: of(|calls| calls.vcpu) }
}

/// A device that is not built yet, and its kind.
struct Planned {
    kind: &'static dyn DeviceKind,
    device: Box<dyn UnbuiltDevice>,
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.device.fmt(f)
    }
}

/// The devices of a machine that is not built yet, in the order in which the guest has them.
#[derive(Debug)]
pub struct UnbuiltDevices(Vec<Planned>);

impl UnbuiltDevices {
    /// Takes the files of the devices that `configs` describes, and puts them in order.
    ///
    /// # Errors
    /// When a file is missing, or a machine cannot have these devices.
    pub fn take(configs: &[DeviceConfig], fds: &mut ReceivedFds) -> Result<Self, DeviceSetError> {
        let mut devices = Vec::with_capacity(configs.len());
        for kind in KINDS {
            let taken = kind.take(configs, fds)?;
            let (given, limit) = (taken.len(), kind.limit());
            if given > limit {
                return Err(DeviceSetError::TooMany { device: kind.device_type(), given, limit });
            }
            devices.extend(taken.into_iter().map(|device| Planned { kind, device }));
        }
        match configs.len().saturating_sub(devices.len()) {
            0 => Ok(Self(devices)),
            unknown => Err(DeviceSetError::UnknownKind(unknown)),
        }
    }

    /// Leaves out what builds of the time of a snapshot did not have. All else that differs from
    /// `saved` is found when the state is restored.
    pub fn leave_out_newer_than(&mut self, saved: &[TransportState]) {
        let has = |device: DeviceType| saved.iter().any(|saved| saved.device_type == device.number());
        self.0.retain(|planned| !planned.kind.is_newer_than_snapshots() || has(planned.kind.device_type()));
    }

    /// Returns the size in bytes up to which a file may grow that a device writes.
    ///
    /// # Errors
    /// When the host does not say how large a file is.
    pub fn largest_file(&self) -> Result<u64, DeviceSetError> {
        let sizes = self.0.iter().map(|planned| planned.device.largest_file());
        let largest = sizes.max_by_key(|size| size.as_ref().map_or(u64::MAX, |size| *size));
        largest.unwrap_or(Ok(0)).map_err(DeviceSetError::Size)
    }

    /// Returns all their descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().flat_map(|planned| planned.device.descriptors())
    }

    /// Builds the devices: for the transports in order, and the host's side of them.
    ///
    /// # Errors
    /// When one cannot be built.
    pub fn build(
        self,
        released: &Arc<ReleasedPages>,
    ) -> Result<(Vec<Box<dyn VirtioDevice>>, DeviceSet), DeviceSetError> {
        let mut devices = Vec::with_capacity(self.0.len());
        let mut hosts = Vec::with_capacity(self.0.len());
        for Planned { kind, device } in self.0 {
            let built = device.build(released)?;
            devices.push(built.device);
            hosts.push((kind, built.host));
        }
        let disks = hosts.iter().filter_map(|(_, host)| host.writable_disk().cloned());
        Ok((devices, DeviceSet { disks: WritableDisks::new(disks.collect()), hosts }))
    }
}

/// The host's side of all devices of a machine, in the order in which the guest has them.
pub struct DeviceSet {
    disks: WritableDisks,
    hosts: Vec<(&'static dyn DeviceKind, Box<dyn HostSide>)>,
}

impl fmt::Debug for DeviceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.hosts.iter().map(|(_, host)| host)).finish()
    }
}

/// The files that a reset gives the devices.
#[derive(Debug)]
pub struct PreparedReset {
    disks: PreparedDisks,
}

/// The files of a copy's devices, one for each device that needs one.
#[derive(Debug)]
pub struct CopyFiles(Vec<Option<OwnedFd>>);

impl DeviceSet {
    /// Returns the disks that the guest can write.
    #[must_use]
    pub fn disks(&self) -> &WritableDisks {
        &self.disks
    }

    /// Returns the network card, if the machine has one.
    #[must_use]
    pub fn network_card(&self) -> Option<&NetworkCard> {
        self.hosts.iter().find_map(|(_, host)| host.network_card())
    }

    /// Sets a limit of every device that has it. Copies of the machine begin with it.
    pub fn limit(&self, limit: Limit) {
        self.hosts.iter().for_each(|(_, host)| host.limit(limit));
    }

    /// Takes the files that a reset gives the devices. Nothing changes for the guest.
    ///
    /// # Errors
    /// When a file is missing, cannot be used, or is for a device that the machine does not have.
    pub fn prepare_reset(&self, given: &[ResetDevice], fds: &mut ReceivedFds) -> Result<PreparedReset, DisksError> {
        let layers: Vec<_> = given.iter().map(|ResetDevice::Block { layers }| layers.as_slice()).collect();
        Ok(PreparedReset { disks: self.disks.prepare_switch(&layers, fds)? })
    }

    /// Gives the devices of a standing machine the files that were prepared. Their state is restored later.
    pub fn reset(&self, prepared: PreparedReset) {
        self.disks.switch(prepared.disks);
    }

    /// Takes the files of a copy of the machine from those that came with the request.
    ///
    /// # Errors
    /// When a file is missing, or is for a device that the machine does not have.
    pub fn take_for_copy(&self, given: &[ChildDevice], fds: &mut ReceivedFds) -> Result<CopyFiles, DeviceSetError> {
        let mut files: Vec<Option<OwnedFd>> = self.hosts.iter().map(|_| None).collect();
        for given in given {
            let mut open = self.hosts.iter().zip(&mut files).filter(|(_, file)| file.is_none());
            let place = open.find_map(|((_, host), file)| Some((host.file_in_copy(given)?, file)));
            let (index, file) = place.ok_or(DeviceSetError::Copy("one is for a device that does not exist"))?;
            *file = Some(fds.take(index, "a device of a copy")?);
        }
        let lacks =
            |((_, host), file): (&(_, Box<dyn HostSide>), &Option<_>)| host.needs_file_in_copy() && file.is_none();
        if self.hosts.iter().zip(&files).any(lacks) {
            return Err(DeviceSetError::Copy("a device lacks its file"));
        }
        Ok(CopyFiles(files))
    }

    /// In a forked child: returns copies of all devices, with the files that were taken for them.
    ///
    /// # Errors
    /// When a descriptor cannot be copied.
    pub fn copy(&self, files: CopyFiles) -> Result<UnbuiltDevices, DeviceSetError> {
        let devices = self.hosts.iter().zip(files.0).map(|((kind, host), file)| {
            let device = host.copy(file)?;
            Ok(Planned { kind: *kind, device })
        });
        Ok(UnbuiltDevices(devices.collect::<Result<_, DeviceSetError>>()?))
    }
}

#[cfg(test)]
mod tests;
