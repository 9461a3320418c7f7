//! Why there is no snapshot, or none that can be used here.

use crate::{
    guest::in_use::InUseError,
    home::{directory::DirectoryError, host::HostError},
    limits::admission::AdmissionError,
    snapshot::{flatten::FlattenError, lineage::LineageError, manifest::ManifestError, seal::SealError},
    vmm::{control::ControlError, state::State},
};
use sandboxvm_images::bundle::Part;
use sandboxvm_protocol::ids::SandboxName;
use std::{io, path::PathBuf};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none of that name.
    #[error("no snapshot has the name {0:?}; `sandboxvm snapshot ls` lists them")]
    Unknown(String),
    /// The name is taken.
    #[error("there is a snapshot named \"{0}\" already; choose another name, or `sandboxvm snapshot rm {0}` first")]
    Taken(SandboxName),
    /// The sandbox does not run.
    #[error("sandbox {sandbox} is {state}: only a running one can be snapshotted")]
    NotRunning {
        /// Its name, else its ID.
        sandbox: String,
        /// What it does instead.
        state: State,
    },
    /// It cannot go on on this host.
    #[error("the snapshot cannot be used here: {0}; make it again")]
    OtherHost(String),
    /// The files it was made with are not there any more.
    #[error("the snapshot needs the {part} it was made with (SHA-256 {}...), and neither {} nor the bundle has it; make it again", .sha256.get(..12).unwrap_or(.sha256), .path.display())]
    OtherContent {
        /// Which file.
        part: Part,
        /// Its hash then.
        sha256: String,
        /// Where it was.
        path: PathBuf,
    },
    /// A file is not as long as it was.
    #[error("{} has {len} bytes where {expected} belong: the snapshot is truncated; make it again", .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// What it should be.
        expected: u64,
    },
    /// A file is not what it was.
    #[error("{} was changed since the snapshot was made: it does not have its checksum; make the snapshot again", .0.display())]
    Changed(PathBuf),
    /// It has no checksums.
    #[error("snapshot {0:?} has no checksums: an older sandboxvm made it")]
    Unsealed(String),
    /// The host has no room for it.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// Its manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The sandbox's own record.
    #[error(transparent)]
    Lineage(#[from] LineageError),
    /// Its disk cannot take another layer.
    #[error("{0}")]
    Flatten(#[from] FlattenError),
    /// The VMM refused or failed; the sandbox runs on unless it says otherwise.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The host cannot be told from others.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It was paused because nobody used it, and does not go on.
    #[error(transparent)]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The system gave no randomness for an ID.
    #[error("cannot make a snapshot's ID: {0}")]
    Entropy(io::Error),
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
    /// True when the snapshot's own files are to blame.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Changed(_) | Self::Manifest(_))
    }
}
