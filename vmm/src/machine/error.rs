//! Why a machine cannot be built, saved or restored.

use crate::{
    arch::x86_64::{boot, cmdline, layout, registers, state},
    devices::virtio::transport::{QueueLimitError, RestoreError},
    memory,
    process::failure::kind_of,
};
use sandboxvm_protocol::{machine::HostMode, vmm::RefusalKind};
use std::io;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// /dev/kvm.
    #[error("cannot open /dev/kvm: {0}; run as root or as a member of the group that owns it")]
    OpenKvm(kvm_ioctls::Error),
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// CPUID table.
    #[error("this host's CPUID has more entries than KVM takes back")]
    Cpuid,
    /// A host resource.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// Command line.
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    /// Kernel.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// Registers.
    #[error(transparent)]
    Registers(#[from] registers::RegistersError),
    /// A device asks for what virtio does not have.
    #[error(transparent)]
    QueueLimit(#[from] QueueLimitError),
    /// KVM's state.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// A device's state.
    #[error("the snapshot does not fit this machine: {0}")]
    Device(#[from] RestoreError),
    /// Made on another kind of host.
    #[error("the snapshot was made in host mode {saved}, this host is in mode {here}; make it again here")]
    OtherHostMode {
        /// Mode it was made in.
        saved: HostMode,
        /// Mode of this host.
        here: HostMode,
    },
    /// Another shape than the snapshot's.
    #[error("the snapshot has {saved} {what}, the machine {here}")]
    OtherShape {
        /// What differs.
        what: &'static str,
        /// In the snapshot.
        saved: usize,
        /// In the machine.
        here: usize,
    },
    /// More devices than interrupt lines.
    #[error("{0} virtio devices do not fit the {max} interrupt lines there are", max = layout::LAST_GSI - layout::VIRTIO_GSI + 1)]
    TooManyDevices(usize),
}

impl MachineError {
    /// True when another configuration would work on this host; false when the host is at fault.
    #[must_use]
    pub fn is_bad_config(&self) -> bool {
        matches!(
            self,
            Self::Cmdline(_)
                | Self::Boot(_)
                | Self::TooManyDevices(_)
                | Self::Memory(_)
                | Self::State(_)
                | Self::Device(_)
                | Self::OtherHostMode { .. }
                | Self::OtherShape { .. }
        )
    }
}

impl MachineError {
    /// Returns the kind of refusal that a client receives.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Host { source, .. } => kind_of(source),
            Self::State(_) | Self::Device(_) | Self::OtherHostMode { .. } | Self::OtherShape { .. } => {
                RefusalKind::BadSnapshot
            }
            _ => RefusalKind::Host,
        }
    }
}

pub(super) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { call, source }
}

pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}
