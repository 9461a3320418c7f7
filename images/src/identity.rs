//! Identifies the file that a sandbox was made from, cheaply enough for every start. May not read
//! the file.

use serde::{Deserialize, Serialize};
use std::{fs::Metadata, os::unix::fs::MetadataExt};

/// Distinguishes versions of a file without reading it: builds replace files by rename, so a
/// changed file has another inode, size or time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since the Unix epoch.
    pub modified_ns: i64,
}

impl From<&Metadata> for FileIdentity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
        }
    }
}
