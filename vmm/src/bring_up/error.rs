//! Why a machine could not be brought up, and who is at fault.

use crate::{
    arch::x86_64::host_mode::UnknownHostMode,
    channel::{descriptors::DescriptorError, launch::LaunchError},
    confine::ConfineError,
    devices::{kind::BuildError, set::DeviceSetError},
    event_loop::EventLoopError,
    machine::MachineError,
    memory::MemoryError,
    snapshot::{format::FormatError, memory_map::MemoryMapError},
};
use sandboxvm_protocol::vmm::ExitReason;
use std::io;

/// Why a machine could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// Launch frame.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
    /// KVM or a device.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Devices.
    #[error(transparent)]
    Devices(#[from] DeviceSetError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// State file.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Memory files.
    #[error(transparent)]
    Map(#[from] MemoryMapError),
    /// Another machine than the snapshot's.
    #[error("the snapshot is of a machine with {saved}, this one is to have {here}")]
    OtherMachine {
        /// Of the snapshot.
        saved: String,
        /// Asked for.
        here: String,
    },
    /// A host resource.
    #[error("cannot set up {what}: {source}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// No KVM vendor module.
    #[error(transparent)]
    HostMode(#[from] UnknownHostMode),
    /// The process could not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
}

impl BringUpError {
    pub(super) fn reason(&self) -> ExitReason {
        let message = self.to_string();
        match self {
            Self::Machine(error) if !error.is_bad_config() => ExitReason::HostFailure { message },
            Self::Devices(DeviceSetError::Build(BuildError::Host { .. })) => ExitReason::HostFailure { message },
            Self::Io { .. } | Self::EventLoop(_) | Self::HostMode(_) | Self::Confine(_) => {
                ExitReason::HostFailure { message }
            }
            _ => ExitReason::BadConfig { message },
        }
    }
}
