//! Versions of the host <-> agent wire: the current one, and the first that had each feature.

use crate::frame::Wire;

/// The host <-> agent wire. A snapshot freezes an agent, so hosts keep reading every version from `oldest` on.
pub const WIRE: Wire = Wire { magic: *b"SA", version: 5, oldest: 1 };

/// The version that first had processes found again by PID: listed, attached to, signalled, their output kept.
pub const SINCE_PROCESSES: u8 = 2;

/// The version that first had [`files`].
pub const SINCE_FILES: u8 = 3;

/// The version that first connected hosts to TCP ports of the guest.
pub const SINCE_PORTS: u8 = 3;

/// The version that first had the number and the open files of processes limited.
pub const SINCE_LIMITS: u8 = 3;

/// The version that first told hosts which limits programs met.
pub const SINCE_LIMITS_HIT: u8 = 4;

/// The version that first described files with [`details`], and wrote metadata.
pub const SINCE_FILE_DETAILS: u8 = 5;
