//! What a kind of device tells the rest of the VMM about itself, so that nothing outside of its
//! module has to know that it exists. [`super::set`] has the list of kinds.
//!
//! ```text
//! DeviceKind   the kind: its limits, its system calls, what it takes from a launch frame
//!   take ──>  UnbuiltDevice   the files and options of one device
//!                build ──>  VirtioDevice   what the guest sees, and the saved state
//!                           HostSide       what the host changes while the machine exists
//!                              copy ──>  UnbuiltDevice, in a forked child
//! ```

use super::virtio::{
    block::{BlockError, WritableDisk},
    device::{DeviceType, VirtioDevice},
    net::NetworkCard,
};
use crate::{
    channel::descriptors::{DescriptorError, ReceivedFds},
    memory::released::ReleasedPages,
};
use sandboxvm_protocol::{
    machine::{DiskLimits, OutputRate},
    vmm::{ChildDevice, DeviceConfig, FdIndex},
};
use std::{
    fmt, io,
    os::fd::{OwnedFd, RawFd},
    sync::Arc,
};

/// Why a device cannot be built or copied.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The files of a disk do not make a disk.
    #[error(transparent)]
    Disk(#[from] BlockError),
    /// The host does not provide what the device needs.
    #[error("cannot set up {what}: {source}")]
    Host {
        /// What is set up.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// A kind of device.
pub trait DeviceKind: Sync {
    /// Returns its type.
    fn device_type(&self) -> DeviceType;

    /// Returns the maximum number of such devices in one machine.
    fn limit(&self) -> usize {
        1
    }

    /// Returns whether there are snapshots without this kind although machines always have it:
    /// builds of their time did not know it. A machine that is restored from one has none.
    fn is_newer_than_snapshots(&self) -> bool {
        false
    }

    /// Returns the system calls that its devices make.
    fn system_calls(&self) -> SystemCalls;

    /// Takes the files of all devices of this kind, in the order of `configs`. Devices of other
    /// kinds are skipped.
    ///
    /// # Errors
    /// When a file did not come with the message.
    fn take(
        &self,
        configs: &[DeviceConfig],
        fds: &mut ReceivedFds,
    ) -> Result<Vec<Box<dyn UnbuiltDevice>>, DescriptorError>;
}

/// System calls of a device, for the filter of each kind of thread that calls it. The filter is
/// installed before the machine is known, so a machine without the device has them too.
#[derive(Debug, Clone, Copy)]
pub struct SystemCalls {
    /// Of the event loop.
    pub event_loop: &'static [libc::c_long],
    /// Of a vCPU thread, which calls a device when the guest accesses its registers.
    pub vcpu: &'static [libc::c_long],
}

/// The files and options of a device whose machine is not built yet.
pub trait UnbuiltDevice: fmt::Debug {
    /// Returns its descriptors, which a forked child does not close.
    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Returns the size in bytes up to which a file may grow that the device writes.
    ///
    /// # Errors
    /// When the host does not say how large a file is.
    fn largest_file(&self) -> io::Result<u64> {
        Ok(0)
    }

    /// Builds the device. `released` is where pages are noted that the guest gives back.
    ///
    /// # Errors
    /// When its files are not what they should be, or the host does not provide what it needs.
    fn build(self: Box<Self>, released: &Arc<ReleasedPages>) -> Result<BuiltDevice, BuildError>;
}

/// A device and the host's side of it.
#[derive(Debug)]
pub struct BuiltDevice {
    /// For the transport.
    pub device: Box<dyn VirtioDevice>,
    /// For the event loop.
    pub host: Box<dyn HostSide>,
}

/// The host's side of a device: what requests of the manager change, and what a copy inherits. The
/// event loop is the only caller, and the guest cannot reach it.
pub trait HostSide: fmt::Debug {
    /// Returns the layers of the device if it is a disk that the guest can write.
    fn writable_disk(&self) -> Option<&WritableDisk> {
        None
    }

    /// Returns the card if the device is one.
    fn network_card(&self) -> Option<&NetworkCard> {
        None
    }

    /// Sets a limit from now on. A device that the limit is not for ignores it.
    fn limit(&self, _limit: Limit) {}

    /// Returns whether a copy of the device needs a file that it does not share with this one.
    fn needs_file_in_copy(&self) -> bool {
        false
    }

    /// Returns which file `given` has for a copy of this device, or `None` if it is for another.
    fn file_in_copy(&self, _given: &ChildDevice) -> Option<FdIndex> {
        None
    }

    /// In a forked child: returns the copy, with `file` if it [needs one](Self::needs_file_in_copy).
    /// The state of the device is restored later.
    ///
    /// # Errors
    /// When a descriptor cannot be copied.
    fn copy(&self, file: Option<OwnedFd>) -> Result<Box<dyn UnbuiltDevice>, BuildError>;
}

/// A limit that the manager sets while the machine exists.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// Maximum rate at which the guest sends.
    Output(OutputRate),
    /// Maximum rates of its disks together.
    Disk(DiskLimits),
}
