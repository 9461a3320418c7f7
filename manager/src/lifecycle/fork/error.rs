//! Why a sandbox was not forked.

use crate::{
    audit::AuditError,
    guest::{error::ExecError, in_use::InUseError, shares::HoldError},
    home::{directory::DirectoryError, names::NameError},
    limits::admission::AdmissionError,
    mounts::MountPath,
    record::RecordError,
    snapshot::{change::ChangeError, flatten::FlattenError, lineage::LineageError},
    supervision::SuperviseError,
    vmm::{control::ControlError, state::State},
    volumes::VolumeName,
};
use std::{io, path::PathBuf, time::Duration};

/// Maximum number of copies in one fork: more than any host can hold.
pub(crate) const MAX_CHILDREN: u32 = 10_000;

/// Why a sandbox was not forked. The sandbox keeps running, and no child is left.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The number of copies is out of range.
    #[error("invalid number of copies {0}: must be between 1 and {MAX_CHILDREN}")]
    Count(u32),
    /// Two machines would write one file system.
    #[error("cannot fork sandbox {sandbox}: it can write volume {volume}, and a volume has one writer")]
    WritableVolume {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The volume.
        volume: VolumeName,
    },
    /// Several machines would write one directory, and the caller has not agreed to that.
    #[error("cannot fork sandbox {sandbox}: it can write {} of the host, and its copies could as well", .path.display())]
    WritableShare {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Path on the host.
        path: PathBuf,
    },
    /// A sandbox cannot share its copy of a directory: it is removed with the sandbox.
    #[error("cannot fork sandbox {sandbox}: its share at {at} is a private copy, which only another copy can replace")]
    CopiedShare {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Where the share is in the guest.
        at: MountPath,
    },
    /// A share cannot be copied.
    #[error("cannot copy the share at {at}: {reason}")]
    Copy {
        /// Where the share is in the guest.
        at: MountPath,
        /// Why.
        reason: String,
    },
    /// The sandbox has a volume of the server, and the server records which sandboxes have one.
    #[error("cannot fork sandbox {0}: it has a volume of the server")]
    SharedVolume(String),
    /// The live shares cannot be held.
    #[error("cannot fork the sandbox: {0}")]
    Hold(#[from] HoldError),
    /// Only a running sandbox can be forked.
    #[error("cannot fork sandbox {sandbox}: it is {state}, and only a running sandbox can be forked")]
    NotRunning {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The state of the sandbox.
        state: State,
    },
    /// The host does not have room for the copies.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// The VMM of the sandbox refused the request or failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The machine of a child did not start.
    #[error("a copy did not start: {0}")]
    Child(ControlError),
    /// A child did not accept its identity.
    #[error("cannot give a copy its identity: {0}")]
    Identity(Box<ExecError>),
    /// A child took too long to answer.
    #[error("a copy was not ready within {} s", .0.as_secs())]
    NotReady(Duration),
    /// The VMM of a child is still in the control group of its parent.
    #[error(
        "cannot move a copy into its own control group; without one it would end with the sandbox of which it is a copy"
    )]
    Group,
    /// The disk of the sandbox cannot have another layer.
    #[error("{0}")]
    Flatten(#[from] FlattenError),
    /// The lineage of the sandbox cannot be read or written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The record of a child cannot be written.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// The directory of a child cannot be created.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The idle rule paused the sandbox, and it cannot be resumed.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The audit log cannot be written, so the fork was not done.
    #[error("{0}")]
    Audit(#[from] AuditError),
    /// The network of a child cannot be written down.
    #[error("{0}")]
    Services(#[from] SuperviseError),
    /// The system provided no randomness or no socket.
    #[error("cannot create a copy: {0}")]
    Io(#[from] io::Error),
}

impl From<ChangeError> for ForkError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotRunning { sandbox, state } => Self::NotRunning { sandbox, state },
            ChangeError::Idle(error) => Self::Idle(error),
            ChangeError::Control(error) => Self::Control(error),
            ChangeError::Lineage(error) => Self::Lineage(error),
            ChangeError::Directory(error) => Self::Directory(error),
        }
    }
}
