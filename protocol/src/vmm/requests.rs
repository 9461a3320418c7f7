//! Requests that carry files, and what is reported about them.

use super::{
    devices::{ChildDevice, ResetDevice},
    limits::{FdIndex, MAX_DEVICES, MAX_DISKS, MAX_FORK_CHILDREN},
};
use crate::{capped, ids::SandboxId};
use serde::{Deserialize, Serialize};

/// Write a snapshot of the machine, which runs on as soon as its vCPUs' state is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Empty file for the state.
    pub state: FdIndex,
    /// Empty file for the memory that is not in the files of the snapshot before.
    pub memory: FdIndex,
    /// `/proc/PID/pagemap` of the VMM, to find the pages the guest wrote (the VMM has no /proc of its own).
    pub pagemap: FdIndex,
    /// One empty file per writable disk: the new top layer. What was on top belongs to the snapshot from then on.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disk_tops: Vec<FdIndex>,
    /// Write all memory instead of what changed since the last snapshot.
    pub full: bool,
}

/// What a snapshot took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// How long the vCPUs stood, in nanoseconds.
    pub pause_ns: u64,
    /// Bytes of memory written.
    pub memory_bytes: u64,
    /// True when the memory file holds everything, so that no earlier one belongs to the snapshot.
    pub self_contained: bool,
}

/// Make copies of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkRequest {
    /// One empty file per writable disk: the parent's new top layer.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disk_tops: Vec<FdIndex>,
    /// The copies.
    #[serde(with = "capped::List::<MAX_FORK_CHILDREN>")]
    pub children: Vec<ForkChild>,
}

/// One copy of a running machine: a process forked off its VMM, with separate files. It starts to run at
/// [`super::ControlRequest::Start`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkChild {
    /// Its ID.
    pub sandbox: SandboxId,
    /// Its launch channel: it gets the same events as any VMM's.
    pub launcher: FdIndex,
    /// What its devices do not share with the parent's. One for each device that needs it, several of one kind in the
    /// order of [`super::LaunchConfig::devices`]. Everything else is inherited.
    #[serde(with = "capped::List::<MAX_DEVICES>")]
    pub devices: Vec<ChildDevice>,
    /// As in [`super::LaunchConfig`]; the limit is the parent's.
    pub console: FdIndex,
    /// What the process reports goes here: its standard error.
    pub log: FdIndex,
    /// As in [`super::LaunchConfig`].
    pub control: FdIndex,
    /// As in [`super::LaunchConfig`].
    pub status: FdIndex,
    /// As in [`super::LaunchConfig`].
    pub lock: FdIndex,
    /// As in [`super::LaunchConfig`].
    pub tie_to_launcher: bool,
}

/// What a fork took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkReport {
    /// How long the parent's vCPUs stood, in nanoseconds.
    pub pause_ns: u64,
    /// Process IDs of the children as the parent VMM sees them, in the order of the request.
    #[serde(with = "capped::List::<MAX_FORK_CHILDREN>")]
    pub pids: Vec<u32>,
}

/// Merge the frozen layers of each writable disk into one file, while the machine runs on. Nothing uses that file until
/// [`super::ControlRequest::UseMerged`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeLayersRequest {
    /// One empty file per writable disk.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub files: Vec<FdIndex>,
}

/// Put the machine back, in place, to the snapshot it was started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetRequest {
    /// The snapshot's state file.
    pub state: FdIndex,
    /// The files of its devices. One for each device that needs it, several of one kind in the order of
    /// [`super::LaunchConfig::devices`]. All other devices keep their files.
    #[serde(with = "capped::List::<MAX_DEVICES>")]
    pub devices: Vec<ResetDevice>,
}

/// What a reset took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// From the first vCPU's being stopped to all running again, in nanoseconds.
    pub pause_ns: u64,
}
