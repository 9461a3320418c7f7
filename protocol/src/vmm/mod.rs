//! Manager <-> VMM: a Unix stream. The launch channel (the VMM's stdin) starts with [`LaunchConfig`] and every open
//! file it names; later the same messages flow on it as on the control socket.
//!
//! Requests are answered in order, one [`VmmMessage::Reply`] each. A connection that asked to [`ControlRequest::Watch`]
//! (the launch channel always does) also gets [`VmmMessage::Event`]s between replies.
//!
//! Append enum variants, never reorder them: postcard numbers by position. A VMM and its manager may be of different
//! builds (a running sandbox outlives an upgrade).

pub mod stats;
pub mod status;
pub mod users;

pub use stats::{BootMark, Timeline, VcpuStats, VmStats};
pub use status::{ExitReason, JailPart, MAX_TEXT, Phase, STATUS_LEN, VmStatus, VmmThread, system_call_name};

use crate::{
    capped,
    frame::{Message, Wire},
    ids::{GuestCid, SandboxId},
    machine::{DiskLimits, MemorySize, OutputRate, VcpuCount},
};
use serde::{Deserialize, Serialize};

/// The manager <-> VMM wire.
pub const WIRE: Wire = Wire { magic: *b"SC", version: 1, oldest: 1 };

/// Largest message in either direction, in bytes.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Most file descriptors with one message; the kernel's own limit is 253 (unix(7), SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// Most disks of one machine.
pub const MAX_DISKS: usize = 16;

/// Longest [`LaunchConfig::cmdline_extra`] in bytes; x86 Linux takes 2047 in all (COMMAND_LINE_SIZE).
pub const MAX_CMDLINE_EXTRA: usize = 1024;

/// Position of a file descriptor among those that came with the message (SCM_RIGHTS). Each is taken exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FdIndex(pub u8);

/// Everything a VMM needs to know about its machine. All files are open already; the VMM opens none but `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchConfig {
    /// For logs and the process title.
    pub sandbox: SandboxId,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory: MemorySize,
    /// How the machine comes to life.
    pub source: MachineSource,
    /// vda, vdb, ... in this order; at most [`MAX_DISKS`].
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disks: Vec<DiskConfig>,
    /// vsock device.
    pub vsock: VsockConfig,
    /// Where the serial console goes.
    pub console: ConsoleConfig,
    /// Listening Unix socket for [`ControlRequest`]s.
    pub control: FdIndex,
    /// Status file; the VMM replaces its content with a JSON [`VmStatus`].
    pub status: FdIndex,
    /// Open file description that holds the sandbox's flock; kept open for the VMM's life.
    pub lock: FdIndex,
    /// Run immediately, or wait for [`ControlRequest::Start`].
    pub start: bool,
    /// End the machine when the launch channel closes.
    pub tie_to_launcher: bool,
}

/// How a machine comes to life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineSource {
    /// A kernel boots.
    Boot {
        /// An ELF vmlinux.
        kernel: FdIndex,
        /// Added to the command line the VMM builds; printable ASCII, at most [`MAX_CMDLINE_EXTRA`] bytes.
        #[serde(with = "capped::Line::<MAX_CMDLINE_EXTRA>")]
        cmdline_extra: String,
    },
    /// The machine is restored from a snapshot. vCPUs, memory size and disks are those that the snapshot was made with.
    Snapshot {
        /// Its state file.
        state: FdIndex,
        /// Its memory files, in the order the state file numbers them; mapped, never read as a whole.
        #[serde(with = "capped::List::<MAX_MEMORY_FILES>")]
        memory: Vec<FdIndex>,
    },
}

/// Most memory files of one snapshot: a longer chain of differences is flattened.
pub const MAX_MEMORY_FILES: usize = 16;

/// Most layers of one disk, the one being written included: a longer chain is merged before (see
/// [`MergeLayersRequest`]).
pub const MAX_DISK_LAYERS: usize = 64;

/// Most children of one [`ForkRequest`]: their files must fit one message.
pub const MAX_FORK_CHILDREN: usize = 24;

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
/// [`ControlRequest::Start`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkChild {
    /// Its ID.
    pub sandbox: SandboxId,
    /// Its launch channel: it gets the same events as any VMM's.
    pub launcher: FdIndex,
    /// One empty file per writable disk.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disk_tops: Vec<FdIndex>,
    /// As in [`LaunchConfig`].
    pub vsock: FdIndex,
    /// As in [`LaunchConfig`]; the limit is the parent's.
    pub console: FdIndex,
    /// What the process reports goes here: its standard error.
    pub log: FdIndex,
    /// As in [`LaunchConfig`].
    pub control: FdIndex,
    /// As in [`LaunchConfig`].
    pub status: FdIndex,
    /// As in [`LaunchConfig`].
    pub lock: FdIndex,
    /// As in [`LaunchConfig`].
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
/// [`ControlRequest::UseMerged`].
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
    /// Per writable disk its layers: the snapshot's, and an empty file on top.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disks: Vec<DiskLayers>,
}

/// What a reset took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// From the first vCPU's being stopped to all running again, in nanoseconds.
    pub pause_ns: u64,
}

/// Layers of one writable disk, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLayers(#[serde(with = "capped::List::<MAX_FDS>")] pub Vec<FdIndex>);

/// One virtio-blk disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskConfig {
    /// A raw image that is never written.
    ReadOnly {
        /// The image.
        image: FdIndex,
    },
    /// A raw template under copy-on-write layers.
    Writable {
        /// Raw image at the bottom; never written.
        template: FdIndex,
        /// Oldest first; the last is written, the others are frozen. An empty last file becomes a new layer.
        #[serde(with = "capped::List::<MAX_FDS>")]
        layers: Vec<FdIndex>,
    },
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// Listening Unix socket; clients write `CONNECT <port>\n`.
    pub listener: FdIndex,
    /// The guest's CID.
    pub cid: GuestCid,
}

/// The serial console's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Log file.
    pub log: FdIndex,
    /// Bytes kept: the file never grows beyond this; the oldest half is dropped when it would.
    pub limit: u64,
}

/// Asked of a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Let the vCPUs run for the first time.
    Start,
    /// Stop all vCPUs between two instructions.
    Pause,
    /// Let all vCPUs run again.
    Resume,
    /// End the machine now (the manager asks the agent first when it wants an orderly end).
    Stop,
    /// Counters.
    Stats,
    /// Send events on this connection from now on. The first event is the current phase.
    Watch,
    /// Answered by [`ControlReply::Snapshot`] once everything is written.
    Snapshot(SnapshotRequest),
    /// Answered by [`ControlReply::Fork`] once the children exist.
    Fork(ForkRequest),
    /// Answered by [`ControlReply::Reset`]; the machine runs again.
    Reset(ResetRequest),
    /// Answered by [`ControlReply::Timeline`].
    Timeline,
    /// Let the machine live on when the launch channel closes, whatever [`LaunchConfig::tie_to_launcher`] said.
    Untie,
    /// Answered by [`ControlReply::Done`] once the layers are merged and that is durable.
    MergeLayers(MergeLayersRequest),
    /// Put what was merged on this connection in the place of the layers it was merged from: in force when this is
    /// answered. Refused when a snapshot, fork or reset came in between.
    UseMerged,
    /// Take no more than this from the guest from now on; forks of the machine begin with it.
    LimitOutput(OutputRate),
    /// Serve the guest's disks no faster than this from now on; forks of the machine begin with it.
    LimitDisk(DiskLimits),
}

/// Sent by a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmMessage {
    /// Answer to the oldest unanswered request.
    Reply(ControlReply),
    /// To watchers.
    Event(VmmEvent),
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlReply {
    /// Done.
    Done,
    /// Counters.
    Stats(Box<VmStats>),
    /// Not done; the machine is as it was.
    Failed {
        /// What was tried and why it failed.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        message: String,
    },
    /// A snapshot is written and durable.
    Snapshot(SnapshotReport),
    /// The children exist.
    Fork(ForkReport),
    /// How the machine came to life.
    Timeline(Timeline),
    /// The machine is back where it began, and runs.
    Reset(ResetReport),
}

/// Things that happen to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmEvent {
    /// The phase changed.
    Phase(Phase),
    /// The machine ended, or never began; the VMM process exits after this.
    Ended(ExitReason),
}

impl Message for LaunchConfig {}
impl Message for ControlRequest {}
impl Message for VmmMessage {}
