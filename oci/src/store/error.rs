//! Failures of the store.

use crate::digest::Digest;
use std::{
    error,
    io::{self, ErrorKind},
    path::PathBuf,
};

/// A failed operation of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// Verb of the operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file system, or the user's quota, has no room. No incomplete file remains.
    #[error("cannot {what} {}: the disk is full", .path.display())]
    Full {
        /// Verb of the operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The store does not have a blob.
    #[error("the store does not have {0}")]
    Missing(Digest),
    /// Content does not have the digest that its source states.
    #[error("invalid content of {expected}: its digest is {actual}")]
    WrongDigest {
        /// The stated digest.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
    },
    /// Content does not have the size that its source states.
    #[error("invalid content of {digest}: it has {actual} bytes, expected {expected}")]
    WrongSize {
        /// The digest of the content.
        digest: Digest,
        /// The stated size in bytes.
        expected: u64,
        /// The size in bytes, or of the part that was read.
        actual: u64,
    },
    /// A document of the store is larger than its kind may be.
    #[error("{digest} has more than {maximum} bytes")]
    TooLong {
        /// The digest of the document.
        digest: Digest,
        /// Maximum size in bytes.
        maximum: u64,
    },
    /// The store has as many tags as it may.
    #[error("the store has {0} tags, the maximum")]
    TooManyTags(usize),
    /// The file of tags is not readable.
    #[error("{} is corrupt: {problem}", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The store was made by another version.
    #[error("unsupported image store: its format is {0:?}, expected \"1\"")]
    Version(String),
    /// The caller's function did not build a disk.
    #[error("cannot build the disk of {manifest}: {source}")]
    Disk {
        /// The image.
        manifest: Digest,
        /// Why it failed.
        source: Box<dyn error::Error + Send + Sync>,
    },
    /// The caller does not know which images are in use.
    #[error("cannot find out which images are in use: {0}")]
    InUse(#[source] Box<dyn error::Error + Send + Sync>),
    /// A thread of the runtime ended.
    #[error("the operation was cancelled")]
    Cancelled,
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

impl StoreError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full { what, path },
            _ => Self::Io { what, path, source },
        }
    }
}
