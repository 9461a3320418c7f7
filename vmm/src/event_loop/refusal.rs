//! Why a request was not carried out. The kinds of failure of all modules that requests go through
//! come together here, and leave as one answer.

use super::state::EventLoopError;
use crate::{
    channel::descriptors::DescriptorError,
    devices::virtio::{block::DisksError, net::AttachError},
    fork::ForkError,
    machine::MachineError,
    process::{
        failure::kind_of,
        split::SplitError,
        writer::{WriteFailure, WriterError},
    },
    snapshot::format::FormatError,
};
use sandboxvm_protocol::vmm::{ControlReply, Refusal, RefusalKind};
use std::io;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// A process writes files of the machine.
    #[error(
        "a snapshot of this sandbox is being written, or its disk layers are being merged; try again when that is done"
    )]
    Busy,
    /// A pause of a machine that waits for its first start.
    #[error("the machine was not started yet; start it first")]
    NotStarted,
    /// A reset of a machine that booted, or that is a fork.
    #[error("this machine did not begin from a snapshot")]
    NoOrigin,
    /// A reset to another snapshot.
    #[error("this is not the snapshot that the machine began from")]
    OtherSnapshot,
    /// Nothing to use.
    #[error("no disk layers were merged on this connection")]
    NothingMerged,
    /// A machine without a network card.
    #[error("this machine has no network card")]
    NoCard,
    /// A socket that the network card cannot use.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A file is missing.
    #[error(transparent)]
    Fd(#[from] DescriptorError),
    /// The state file of a reset.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The machine's state cannot be read or set.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Layers of the disks.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// No copy.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// No process for a copy.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// No process to write with.
    #[error(transparent)]
    Writer(#[from] WriterError),
    /// Written pages are not known.
    #[error("cannot find the pages the guest wrote: {0}")]
    Candidates(io::Error),
    /// The guest's memory stays as it was.
    #[error("{0}")]
    Memory(io::Error),
    /// The process that writes a snapshot failed.
    #[error("cannot write the snapshot: {0}")]
    Snapshot(WriteFailure),
    /// The process that merges layers failed.
    #[error("cannot merge the disk's layers: {0}")]
    Merge(WriteFailure),
    /// The event loop cannot watch for what comes next.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
}

impl RequestError {
    fn kind(&self) -> RefusalKind {
        match self {
            Self::Busy => RefusalKind::Busy,
            Self::NotStarted | Self::NoOrigin => RefusalKind::WrongPhase,
            Self::OtherSnapshot => RefusalKind::BadSnapshot,
            Self::NothingMerged | Self::NoCard | Self::Attach(_) | Self::Fd(_) => RefusalKind::BadRequest,
            Self::Format(error) => error.kind(),
            Self::Machine(error) => error.kind(),
            Self::Disks(error) => error.kind(),
            Self::Fork(error) => error.kind(),
            Self::Split(error) => error.kind(),
            Self::Writer(error) => error.kind(),
            Self::Candidates(source) | Self::Memory(source) => kind_of(source),
            Self::Snapshot(failure) | Self::Merge(failure) => failure.kind,
            Self::EventLoop(_) => RefusalKind::Host,
        }
    }
}

impl From<RequestError> for ControlReply {
    fn from(error: RequestError) -> Self {
        Self::Refused(Refusal { kind: error.kind(), message: error.to_string() })
    }
}
