//! Why a snapshot was not taken or cannot be used.

use crate::{
    guest::{in_use::InUseError, shares::HoldError},
    home::{directory::DirectoryError, host::HostError},
    limits::admission::AdmissionError,
    snapshot::change::ChangeError,
    snapshot::{flatten::FlattenError, lineage::LineageError, manifest::ManifestError, seal::SealError},
    vmm::{control::ControlError, state::State},
    volumes::{VolumeError, VolumeName},
};
use sandboxvm_images::bundle::Part;
use sandboxvm_protocol::ids::SandboxName;
use std::{io, path::PathBuf};

/// Why a snapshot was not taken or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot has this name.
    #[error("no snapshot has the name {0:?}")]
    Unknown(String),
    /// The name is taken.
    #[error("a snapshot named \"{0}\" already exists")]
    Taken(SandboxName),
    /// Only a running sandbox can be snapshotted.
    #[error("cannot snapshot sandbox {sandbox}: it is {state}, and only a running sandbox can be snapshotted")]
    NotRunning {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The state of the sandbox.
        state: State,
    },
    /// The memory of the snapshot would have parts of a file system that changes afterwards.
    #[error(
        "cannot snapshot sandbox {sandbox}: it can write volume {volume}, which is not part of a snapshot and would be \
         damaged by a machine that is restored"
    )]
    WritableVolume {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The volume.
        volume: VolumeName,
    },
    /// A snapshot cannot say which volume of which server it would have.
    #[error("cannot snapshot sandbox {0}: it has a volume of the server")]
    SharedVolume(String),
    /// The live shares cannot be held.
    #[error("cannot snapshot the sandbox: {0}")]
    Hold(#[from] HoldError),
    /// A volume of the sandbox cannot be found.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The snapshot cannot be restored on this host.
    #[error("the snapshot cannot be used on this host: {0}")]
    OtherHost(String),
    /// The files that the snapshot was made with no longer exist.
    #[error("the snapshot needs the {part} with which it was created (SHA-256 {}...), and neither {} nor the bundle has it", .sha256.get(..12).unwrap_or(.sha256), .path.display())]
    OtherContent {
        /// The missing file.
        part: Part,
        /// Its SHA-256 when the snapshot was made.
        sha256: String,
        /// Its path when the snapshot was made.
        path: PathBuf,
    },
    /// A file is not as long as it was.
    #[error("the snapshot is truncated: {} has {len} of {expected} bytes", .path.display())]
    Truncated {
        /// Path of the file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The length that it should have, in bytes.
        expected: u64,
    },
    /// The content of a file has changed.
    #[error("the snapshot is damaged: {} was changed since it was created and does not match its checksum", .0.display())]
    Changed(PathBuf),
    /// The snapshot has no checksums.
    #[error("snapshot {0:?} has no checksums: it was created by an older sandboxvm")]
    Unsealed(String),
    /// The host does not have room for the snapshot.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// The manifest cannot be read or written.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// The lineage of the sandbox cannot be read or written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The disk of the sandbox cannot have another layer.
    #[error("{0}")]
    Flatten(#[from] FlattenError),
    /// The VMM refused the request or failed. The sandbox keeps running unless the error says
    /// otherwise.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The identity of the host cannot be read.
    #[error("{0}")]
    Host(#[from] HostError),
    /// The idle rule paused the sandbox, and it cannot be resumed.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The system provided no randomness for an ID.
    #[error("cannot create an ID for the snapshot: {0}")]
    Entropy(io::Error),
}

impl From<ChangeError> for SnapshotError {
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

impl From<SealError> for SnapshotError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Changed(path) => Self::Changed(path),
            SealError::Directory(error) => Self::Directory(error),
        }
    }
}

impl SnapshotError {
    /// Returns true if the files of the snapshot are the cause.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Changed(_) | Self::Manifest(_))
    }
}
