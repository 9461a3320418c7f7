//! Versions of the host <-> agent wire: the current one, and the first version that has each
//! feature.

use crate::frame::Wire;

/// The host <-> agent wire. A snapshot contains an agent, so hosts keep reading all versions from
/// `oldest` on.
pub const WIRE: Wire = Wire { magic: *b"SA", version: 8, oldest: 1 };

/// The first version in which processes can be found by PID: listed, attached to, signalled, and
/// their output kept.
pub const SINCE_PROCESSES: u8 = 2;

/// The first version with [`files`].
pub const SINCE_FILES: u8 = 3;

/// The first version with connections to TCP ports of the guest.
pub const SINCE_PORTS: u8 = 3;

/// The first version that limits the number and the open files of processes.
pub const SINCE_LIMITS: u8 = 3;

/// The first version that reports which limits programs reached.
pub const SINCE_LIMITS_HIT: u8 = 4;

/// The first version that describes files with [`details`] and writes metadata.
pub const SINCE_FILE_DETAILS: u8 = 5;

/// The first version that packs the changes of the disk.
pub const SINCE_DISK_CHANGES: u8 = 6;

/// The first version that extracts below mounts.
pub const SINCE_BELOW_MOUNTS: u8 = 7;

/// The first version that distinguishes the main process of a sandbox, and runs init systems.
pub const SINCE_MAIN_PROCESS: u8 = 7;

/// The first version that mounts workspaces and packs their changes.
pub const SINCE_WORKSPACES: u8 = 7;

/// The first version that mounts volumes and file systems in memory, and makes the root read-only.
pub const SINCE_MOUNTS: u8 = 8;

/// The first version that mounts live shares.
pub const SINCE_SHARES: u8 = 8;
