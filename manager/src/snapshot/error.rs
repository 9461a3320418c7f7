//! Why there is no snapshot, or none that can be used here.

use super::manifest::ManifestError;
use crate::{
    admission::AdmissionError, control::ControlError, directory::DirectoryError, flatten::FlattenError,
    host::HostError, in_use::InUseError, lineage::LineageError, state::State,
};
use sandboxvm_images::bundle::Part;
use sandboxvm_protocol::identity::SandboxName;
use std::{io, path::PathBuf};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none of that name.
    #[error("no snapshot has the name {0:?}")]
    Unknown(String),
    /// The name is taken.
    #[error("a snapshot named \"{0}\" already exists")]
    Taken(SandboxName),
    /// The sandbox does not run.
    #[error("cannot snapshot sandbox {sandbox}: it is {state}, and only a running sandbox can be snapshotted")]
    NotRunning {
        /// Its name, else its ID.
        sandbox: String,
        /// What it does instead.
        state: State,
    },
    /// It cannot go on on this host.
    #[error("the snapshot cannot be used on this host: {0}")]
    OtherHost(String),
    /// The files it was made with are not there any more.
    #[error("the snapshot needs the {part} with which it was created (SHA-256 {}...), and neither {} nor the bundle has it", .sha256.get(..12).unwrap_or(.sha256), .path.display())]
    OtherContent {
        /// Which file.
        part: Part,
        /// Its hash then.
        sha256: String,
        /// Where it was.
        path: PathBuf,
    },
    /// A file is not as long as it was.
    #[error("the snapshot is truncated: {} has {len} of {expected} bytes", .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// What it should be.
        expected: u64,
    },
    /// A file is not what it was.
    #[error("the snapshot is damaged: {} was changed since it was created and does not match its checksum", .0.display())]
    Changed(PathBuf),
    /// It has no checksums.
    #[error("snapshot {0:?} has no checksums: it was created by an older sandboxvm")]
    Unsealed(String),
    /// The host has no room for it.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// Its manifest.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// The sandbox's own record.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// Its disk cannot take another layer.
    #[error("{0}")]
    Flatten(#[from] FlattenError),
    /// The VMM refused or failed; the sandbox runs on unless it says otherwise.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The host cannot be told from others.
    #[error("{0}")]
    Host(#[from] HostError),
    /// It was paused because nobody used it, and does not go on.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The system gave no randomness for an ID.
    #[error("cannot create an ID for the snapshot: {0}")]
    Entropy(io::Error),
}

impl SnapshotError {
    /// True when the snapshot's own files are to blame.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Changed(_) | Self::Manifest(_))
    }
}
