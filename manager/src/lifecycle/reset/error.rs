//! Why a sandbox was not reset.

use crate::{
    create::error::CreateError,
    guest::{error::ExecError, in_use::InUseError},
    home::directory::DirectoryError,
    limits::admission::AdmissionError,
    snapshot::change::ChangeError,
    snapshot::{error::SnapshotError, lineage::LineageError},
    supervision::SuperviseError,
    vmm::{control::ControlError, descriptors::LaunchError, end::EndError},
    volumes::VolumeError,
};
use sandboxvm_images::bundle::BundleError;
use sandboxvm_protocol::ids::{SandboxId, SandboxName};
use std::{path::PathBuf, time::Duration};

/// Why a sandbox was not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The sandbox started in the middle of another one's run.
    #[error("cannot reset sandbox {sandbox} to its start: it is a fork of {of}, which was already running")]
    Fork {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The sandbox that it was forked from.
        of: SandboxId,
    },
    /// The snapshot is of another kind of machine.
    #[error(
        "cannot reset sandbox {sandbox} to snapshot {snapshot}: the snapshot is of a machine with {theirs}, and the sandbox \
         has {ours}"
    )]
    OtherMachine {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// vCPUs, memory and disk of the sandbox.
        ours: String,
        /// Name of the snapshot.
        snapshot: SandboxName,
        /// vCPUs, memory and disk of the snapshot.
        theirs: String,
    },
    /// The machine of the snapshot has another workspace, or one of the two has none.
    #[error("cannot reset sandbox {sandbox} to snapshot {snapshot}: they do not have the same workspace")]
    OtherWorkspace {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Name of the snapshot.
        snapshot: SandboxName,
    },
    /// The machine of the snapshot has other mounts.
    #[error("cannot reset sandbox {sandbox} to snapshot {snapshot}: they do not have the same mounts")]
    OtherMounts {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Name of the snapshot.
        snapshot: SandboxName,
    },
    /// A volume of the sandbox cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The sandbox is paused to disk, and can only continue where it stopped.
    #[error("cannot reset sandbox {0}: it is paused on disk and can only be resumed or removed")]
    Parked(String),
    /// A `run` attends the sandbox and removes it when its VMM ends.
    #[error(
        "cannot reset sandbox {0} to another snapshot than the one it started from: it ends with the command that it runs"
    )]
    Attended(String),
    /// The kernel that the sandbox booted was replaced.
    #[error("cannot reset sandbox {sandbox}: the guest kernel {} was replaced since it booted", .path.display())]
    OtherKernel {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Path that the kernel had.
        path: PathBuf,
    },
    /// The host does not have room for the sandbox.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// The snapshot does not exist or cannot be used.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The lineage of the sandbox cannot be read or written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The VMM refused the request or failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// VMM, kernel, image or agent is missing or damaged.
    #[error("{0}")]
    Bundle(#[from] BundleError),
    /// The VMM cannot be ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// The new VMM did not start.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// The new machine did not start.
    #[error("{0}; the sandbox is stopped")]
    Start(Box<CreateError>),
    /// The machine did not accept its identity.
    #[error("cannot give the sandbox its identity: {0}")]
    Identity(Box<ExecError>),
    /// The agent does not answer.
    #[error("the sandbox was reset, but its guest agent did not respond within {} s", .0.as_secs())]
    Silent(Duration),
    /// The services of the sandbox cannot be started again.
    #[error("{0}")]
    Supervision(#[from] SuperviseError),
    /// The idle rule paused the sandbox, and it cannot be resumed.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl From<ChangeError> for ResetError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotRunning { sandbox, state } => ControlError::NotRunning { sandbox, state }.into(),
            ChangeError::Idle(error) => Self::Idle(error),
            ChangeError::Control(error) => Self::Control(error),
            ChangeError::Lineage(error) => Self::Lineage(error),
            ChangeError::Directory(error) => Self::Directory(error),
        }
    }
}
