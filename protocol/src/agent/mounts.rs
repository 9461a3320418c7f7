//! What the agent mounts beside the root of a sandbox, and whether that root is read-only. May not name a
//! path of the host.

use super::files::FilePath;
use crate::{capped, machine::DiskNumber};
use serde::{Deserialize, Serialize};

/// Maximum number of mounts of one sandbox.
pub const MAX_MOUNTS: usize = 64;

/// Maximum number of volumes of one sandbox: each is a disk of its machine.
pub const MAX_VOLUMES: usize = 8;

/// A request to mount everything that a sandbox has beside its root. What is mounted already is left as it
/// is, so the request may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountTable {
    /// The mounts, in an order in which each comes after those that it lies in.
    #[serde(with = "capped::List::<MAX_MOUNTS>")]
    pub mounts: Vec<Mount>,
    /// Make the root read-only at the end.
    pub read_only_root: bool,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path of the directory, which is created if it is missing.
    pub at: FilePath,
    /// What is mounted.
    pub source: MountedSource,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountedSource {
    /// A volume with an ext4 file system. An empty one gets owner, mode and content of the directory that
    /// it is mounted on, unless it is read-only.
    Volume {
        /// Its position among the disks of the machine.
        disk: DiskNumber,
        /// Neither the file system nor its journal is written.
        read_only: bool,
    },
    /// A file system in memory.
    Tmpfs {
        /// Maximum size of its files in bytes, if it is not the kernel's default.
        size: Option<u64>,
        /// Mode of its root.
        mode: u32,
        /// Programs in it can be executed.
        exec: bool,
    },
}
