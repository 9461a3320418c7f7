//! Manager <-> VMM: a Unix stream. The launch channel (the VMM's stdin) starts with
//! [`LaunchConfig`] and all open files that it names. Later it carries the same messages as the
//! control socket.
//!
//! Requests are answered in order, one [`VmmMessage::Reply`] each. A connection that asked to [`ControlRequest::Watch`]
//! (the launch channel always does) also gets [`VmmMessage::Event`]s between replies.
//!
//! Append enum variants, and never reorder them: postcard numbers them by position. A VMM and its
//! manager may be of different builds (a running sandbox outlives an upgrade).

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

/// Maximum number of file descriptors in one message. The kernel's limit is 253 (unix(7),
/// SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// Maximum number of disks of one machine.
pub const MAX_DISKS: usize = 16;

/// Maximum length of [`LaunchConfig::cmdline_extra`] in bytes. x86 Linux accepts 2047 in total
/// (COMMAND_LINE_SIZE).
pub const MAX_CMDLINE_EXTRA: usize = 1024;

/// Position of a file descriptor among those that came with the message (SCM_RIGHTS). Each is taken exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FdIndex(pub u8);

/// Everything a VMM needs to know about its machine. All files are open already; the VMM opens none but `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchConfig {
    /// ID of the sandbox, for logs and the process title.
    pub sandbox: SandboxId,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory: MemorySize,
    /// What the machine starts from.
    pub source: MachineSource,
    /// The disks vda, vdb and so on, in this order. At most [`MAX_DISKS`].
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disks: Vec<DiskConfig>,
    /// vsock device.
    pub vsock: VsockConfig,
    /// The serial console.
    pub console: ConsoleConfig,
    /// Listening Unix socket for [`ControlRequest`]s.
    pub control: FdIndex,
    /// Status file; the VMM replaces its content with a JSON [`VmStatus`].
    pub status: FdIndex,
    /// Open file description that holds the sandbox's flock. It stays open until the VMM ends.
    pub lock: FdIndex,
    /// Run immediately. Otherwise wait for [`ControlRequest::Start`].
    pub start: bool,
    /// End the machine when the launch channel closes.
    pub tie_to_launcher: bool,
}

/// What a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineSource {
    /// A kernel boots.
    Boot {
        /// The kernel, an ELF vmlinux.
        kernel: FdIndex,
        /// Text that is added to the VMM's command line: printable ASCII, at most
        /// [`MAX_CMDLINE_EXTRA`] bytes.
        #[serde(with = "capped::Line::<MAX_CMDLINE_EXTRA>")]
        cmdline_extra: String,
    },
    /// The machine is restored from a snapshot, with the vCPUs, memory size and disks of that
    /// snapshot.
    Snapshot {
        /// The state file.
        state: FdIndex,
        /// The memory files, in the order of their numbers in the state file. They are mapped, and
        /// never read completely.
        #[serde(with = "capped::List::<MAX_MEMORY_FILES>")]
        memory: Vec<FdIndex>,
    },
}

/// Maximum number of memory files of one snapshot. A longer chain of differences is flattened.
pub const MAX_MEMORY_FILES: usize = 16;

/// Maximum number of layers of one disk, including the one that is written. A longer chain is
/// merged before (see [`MergeLayersRequest`]).
pub const MAX_DISK_LAYERS: usize = 64;

/// Maximum number of children of one [`ForkRequest`]: their files must fit one message.
pub const MAX_FORK_CHILDREN: usize = 24;

/// Writes a snapshot of the machine, which continues as soon as the state of its vCPUs was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Empty file for the state.
    pub state: FdIndex,
    /// Empty file for memory that is not in the files of the previous snapshot.
    pub memory: FdIndex,
    /// `/proc/PID/pagemap` of the VMM, to find the pages that the guest wrote. The VMM itself has
    /// no /proc.
    pub pagemap: FdIndex,
    /// One empty file per writable disk: the new top layer. The previous top layer then belongs to
    /// the snapshot.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disk_tops: Vec<FdIndex>,
    /// Write all memory instead of the changes since the last snapshot.
    pub full: bool,
}

/// The cost of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// How long the vCPUs stood still, in nanoseconds.
    pub pause_ns: u64,
    /// Bytes of memory written.
    pub memory_bytes: u64,
    /// True if the memory file has all memory, so that the snapshot needs no earlier one.
    pub self_contained: bool,
}

/// Copies a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkRequest {
    /// One empty file per writable disk: the parent's new top layer.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disk_tops: Vec<FdIndex>,
    /// The copies.
    #[serde(with = "capped::List::<MAX_FORK_CHILDREN>")]
    pub children: Vec<ForkChild>,
}

/// One copy of a running machine: a process forked off its VMM, with separate files. It starts at
/// [`ControlRequest::Start`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkChild {
    /// ID of the copy.
    pub sandbox: SandboxId,
    /// Its launch channel, on which it sends the same events as every VMM.
    pub launcher: FdIndex,
    /// One empty file per writable disk.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disk_tops: Vec<FdIndex>,
    /// As in [`LaunchConfig`].
    pub vsock: FdIndex,
    /// As in [`LaunchConfig`], with the limit of the parent.
    pub console: FdIndex,
    /// The standard error of the process.
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

/// The cost of a fork.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkReport {
    /// How long the parent's vCPUs stood still, in nanoseconds.
    pub pause_ns: u64,
    /// Process IDs of the children in the PID namespace of the parent VMM, in the order of the
    /// request.
    #[serde(with = "capped::List::<MAX_FORK_CHILDREN>")]
    pub pids: Vec<u32>,
}

/// Merges the frozen layers of each writable disk into one file, while the machine keeps running.
/// The file is not used before [`ControlRequest::UseMerged`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeLayersRequest {
    /// One empty file per writable disk.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub files: Vec<FdIndex>,
}

/// Resets the machine in place to the snapshot from which it was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetRequest {
    /// The snapshot's state file.
    pub state: FdIndex,
    /// The layers of each writable disk: those of the snapshot, and an empty file on top.
    #[serde(with = "capped::List::<MAX_DISKS>")]
    pub disks: Vec<DiskLayers>,
}

/// The cost of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// Time in nanoseconds from the stop of the first vCPU until all run again.
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
        /// Oldest first. The last one is written, and the others are frozen. An empty last file
        /// becomes a new layer.
        #[serde(with = "capped::List::<MAX_FDS>")]
        layers: Vec<FdIndex>,
    },
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// Listening Unix socket. Clients write `CONNECT <port>\n`.
    pub listener: FdIndex,
    /// The guest's CID.
    pub cid: GuestCid,
}

/// The serial console's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Log file.
    pub log: FdIndex,
    /// Maximum size of the file in bytes. When it is reached, the oldest half is dropped.
    pub limit: u64,
}

/// A request to a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Starts the vCPUs for the first time.
    Start,
    /// Stops all vCPUs between two instructions.
    Pause,
    /// Lets all vCPUs run again.
    Resume,
    /// Ends the machine immediately. The manager asks the agent before if it wants an orderly end.
    Stop,
    /// Requests the counters.
    Stats,
    /// Sends events on this connection from now on. The first event is the current phase.
    Watch,
    /// Takes a snapshot. The VMM responds with [`ControlReply::Snapshot`] when everything is
    /// written.
    Snapshot(SnapshotRequest),
    /// Forks the machine. The VMM responds with [`ControlReply::Fork`] when the children exist.
    Fork(ForkRequest),
    /// Resets the machine. The VMM responds with [`ControlReply::Reset`] when the machine runs
    /// again.
    Reset(ResetRequest),
    /// Requests the times of the start. The VMM responds with [`ControlReply::Timeline`].
    Timeline,
    /// Keeps the machine running when the launch channel closes, whatever
    /// [`LaunchConfig::tie_to_launcher`] was.
    Untie,
    /// Merges layers. The VMM responds with [`ControlReply::Done`] when they are merged and
    /// durable.
    MergeLayers(MergeLayersRequest),
    /// Replaces layers by the files into which this connection merged them, with effect from the
    /// response on. Refused if a snapshot, fork or reset came in between.
    UseMerged,
    /// Limits the rate of the guest's output from now on. Forks of the machine start with this
    /// limit.
    LimitOutput(OutputRate),
    /// Limits the rates of the guest's disks from now on. Forks of the machine start with these
    /// limits.
    LimitDisk(DiskLimits),
}

/// A message of a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmMessage {
    /// Response to the oldest request without one.
    Reply(ControlReply),
    /// An event, for connections that watch.
    Event(VmmEvent),
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlReply {
    /// The request is complete.
    Done,
    /// Counters.
    Stats(Box<VmStats>),
    /// The request failed. The machine is unchanged.
    Failed {
        /// What failed and why.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        message: String,
    },
    /// A snapshot is complete and durable.
    Snapshot(SnapshotReport),
    /// The children exist.
    Fork(ForkReport),
    /// The times of the machine's start.
    Timeline(Timeline),
    /// The machine was reset, and runs.
    Reset(ResetReport),
}

/// An event of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmEvent {
    /// The phase changed.
    Phase(Phase),
    /// The machine has ended, or was never started. The VMM then exits.
    Ended(ExitReason),
}

impl Message for LaunchConfig {}
impl Message for ControlRequest {}
impl Message for VmmMessage {}
