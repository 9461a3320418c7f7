//! Limits of the wire, the versions that brought its parts, and how its messages name open files.

use crate::machine::DiskNumber;
use serde::{Deserialize, Serialize};

/// The version that first had a list of devices in [`super::LaunchConfig`], [`super::ForkRequest`] and [`super::ResetRequest`].
pub const SINCE_DEVICES: u8 = 2;

/// The version that first said of what kind a failure is ([`super::ControlReply::Refused`]).
pub const SINCE_REFUSALS: u8 = 2;

/// The version that first had a network card ([`super::DeviceConfig::Net`], [`super::ControlRequest::AttachNetwork`]).
pub const SINCE_NETWORK: u8 = 3;

/// The version that first had slots ([`super::DiskConfig::Slot`]).
pub const SINCE_SLOTS: u8 = 4;

/// The version that first had volumes ([`super::DiskConfig::Volume`]).
pub const SINCE_VOLUMES: u8 = 5;

/// Largest message in either direction, in bytes.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Most file descriptors with one message; the kernel's own limit is 253 (unix(7), SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// Most disks of one machine.
pub const MAX_DISKS: usize = DiskNumber::COUNT as usize;

/// Maximum number of devices of one machine. The VMM has interrupt lines for fewer.
pub const MAX_DEVICES: usize = 32;

/// Longest [`super::LaunchConfig::cmdline_extra`] in bytes; x86 Linux takes 2047 in all (COMMAND_LINE_SIZE).
pub const MAX_CMDLINE_EXTRA: usize = 1024;

/// Position of a file descriptor among those that came with the message (SCM_RIGHTS). Each is taken exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FdIndex(pub u8);

/// Most memory files of one snapshot: a longer chain of differences is flattened.
pub const MAX_MEMORY_FILES: usize = 16;

/// Most layers of one disk, the one being written included: a longer chain is merged before (see
/// [`super::MergeLayersRequest`]).
pub const MAX_DISK_LAYERS: usize = 64;

/// Most children of one [`super::ForkRequest`]: their files must fit one message.
pub const MAX_FORK_CHILDREN: usize = 24;
