//! Why the network of a sandbox is not known.

use crate::home::directory::DirectoryError;
use std::path::PathBuf;

/// The format of `network.json` that this build reads and writes.
pub(crate) const FORMAT: u32 = 1;

/// Why the network of a sandbox is not known.
#[derive(Debug, thiserror::Error)]
pub enum NetworkRecordError {
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The record is not valid, or has a part that this build does not know.
    #[error("cannot read the network settings in {}: {source}", .path.display())]
    Damaged {
        /// Path of the record.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// A newer build wrote the record.
    #[error("{} has unsupported format {found}: this build reads {FORMAT}", .path.display())]
    Format {
        /// Path of the record.
        path: PathBuf,
        /// The format of the record.
        found: u32,
    },
}
