//! Manager <-> VMM: a Unix stream. The launch channel (the VMM's stdin) starts with [`LaunchConfig`] and every open
//! file it names; later the same messages flow on it as on the control socket.
//!
//! Requests are answered in order, one [`VmmMessage::Reply`] each. A connection that asked to [`ControlRequest::Watch`]
//! (the launch channel always does) also gets [`VmmMessage::Event`]s between replies.
//!
//! Append enum variants, never reorder them: postcard numbers by position. A VMM and its manager may be of different
//! builds (a running sandbox outlives an upgrade).

pub mod users;

use crate::{
    capped,
    frame::{Message, Wire},
    identity::{GuestCid, SandboxId},
    machine::{DiskLimits, HostMode, MemorySize, OutputRate, VcpuCount},
    system_calls,
};
use serde::{Deserialize, Serialize};
use std::fmt;

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

/// Longest message for people in a reply, an event or the status file, in bytes; longer ones are cut when sent.
pub const MAX_TEXT: usize = 4096;

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
    /// Run at once, or wait for [`ControlRequest::Start`].
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
    /// A snapshot goes on. vCPUs, memory size and disks are those it was made with.
    Snapshot {
        /// Its state file.
        state: FdIndex,
        /// Its memory files, in the order the state file numbers them; mapped, never read at once.
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

/// One copy of a running machine: a process forked off its VMM, with files of its own. It runs from
/// [`ControlRequest::Start`] on.
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
    /// Let them go on.
    Resume,
    /// End the machine now (the manager asks the agent first when it wants an orderly end).
    Stop,
    /// Counters.
    Stats,
    /// Send events on this connection from now on; the current phase comes at once as one.
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

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Set up; no guest instruction was executed yet.
    Created,
    /// vCPUs run, the agent does not answer yet.
    Booting,
    /// The agent listens.
    Ready,
    /// All vCPUs stand still.
    Paused,
    /// Over.
    Ended,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The agent shut the guest down in order.
    #[error("the guest shut down")]
    GuestShutdown,
    /// Stopped through the control socket.
    #[error("stopped on request")]
    Stopped,
    /// The process that launched the VMM is gone and the machine was tied to it.
    #[error("the launching process ended")]
    LauncherGone,
    /// The guest kernel panicked.
    #[error("the guest kernel panicked")]
    GuestPanic,
    /// The guest reset itself without announcing a shutdown.
    #[error("the guest reset itself without shutting down")]
    GuestReset,
    /// Triple fault (KVM_EXIT_SHUTDOWN).
    #[error("triple fault in the guest")]
    TripleFault,
    /// KVM could not go on executing the guest (KVM_EXIT_INTERNAL_ERROR).
    #[error("KVM could not execute a guest instruction (suberror {suberror}, rip {rip:#x}, bytes {bytes})")]
    InternalError {
        /// KVM's suberror; 1 is an emulation failure.
        suberror: u32,
        /// Guest RIP.
        rip: u64,
        /// Instruction bytes in hex, where KVM gave them.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        bytes: String,
    },
    /// KVM_EXIT_FAIL_ENTRY.
    #[error("the processor refused to enter the guest (reason {reason:#x})")]
    EntryFailure {
        /// Hardware reason.
        reason: u64,
    },
    /// Access to an I/O port that no device owns.
    #[error("guest {} unknown I/O port {port:#x} ({size} bytes)", if *write { "wrote to" } else { "read" })]
    UnknownPort {
        /// Port.
        port: u16,
        /// Direction.
        write: bool,
        /// Access size in bytes.
        size: u8,
    },
    /// Access to an address where neither memory nor a device is.
    #[error("guest {} unmapped address {address:#x} ({size} bytes)", if *write { "wrote to" } else { "read" })]
    UnknownMmio {
        /// Guest-physical address.
        address: u64,
        /// Direction.
        write: bool,
        /// Access size in bytes.
        size: u8,
    },
    /// An exit this VMM has no use for.
    #[error("unexpected KVM exit: {name}")]
    UnexpectedExit {
        /// Name of the exit.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        name: String,
    },
    /// The host failed the VMM: a KVM call, memory, a file.
    #[error("host failure: {message}")]
    HostFailure {
        /// What was tried and why it failed.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        message: String,
    },
    /// The configuration cannot make a machine.
    #[error("cannot start: {message}")]
    BadConfig {
        /// What is wrong with it.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        message: String,
    },
    /// The VMM made a system call that is not left to it: a fault of its own, or it was taken over.
    #[error("ended by the system call filter: call {number} ({}) in {thread}", system_calls::name(*number))]
    ForbiddenCall {
        /// Number of the call (x86-64).
        number: u32,
        /// Who made it.
        thread: VmmThread,
    },
    /// The guest's kernel powered the machine off, by reboot(2).
    #[error("the guest powered off")]
    GuestPowerOff,
    /// The guest's kernel halted the machine, by reboot(2).
    #[error("the guest halted")]
    GuestHalt,
    /// No vCPU can ever execute another instruction: each is halted with interrupts disabled, or was never started.
    #[error("every vCPU of the guest is halted with interrupts disabled")]
    VcpusHalted,
}

impl ExitReason {
    /// True when nothing went wrong.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::GuestShutdown | Self::Stopped | Self::LauncherGone)
    }
}

/// Content of the status file, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// PID of the VMM as it sees itself.
    pub pid: u32,
    /// Where the machine is.
    pub phase: Phase,
    /// What executes guest ring 0.
    pub host_mode: HostMode,
    /// Why it ended, once it did.
    pub reason: Option<ExitReason>,
    /// Parts of the VMM's confinement that this host does not give, empty where all of it is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<JailPart>,
    /// The guest's kernel is of a build that does not leave out time in which the machine did not run: its clocks jump
    /// after a pause or a restore, and a busy process may stand still for as long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clocks_jump: bool,
}

/// A part of the VMM's confinement that a host may withhold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailPart {
    /// Users and groups that are none of the host's.
    UserNamespace,
    /// Mounts, network, IPC, host name and control groups of its own.
    Namespaces,
    /// An empty root in place of the host's files.
    EmptyRoot,
    /// A user that no other process has.
    OwnUser,
}

impl fmt::Display for JailPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserNamespace => "a user namespace of its own",
            Self::Namespaces => "mount, network, IPC, UTS and cgroup namespaces of its own",
            Self::EmptyRoot => "an empty root directory",
            Self::OwnUser => "a user of its own",
        })
    }
}

/// A kind of thread of a VMM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmThread {
    /// The main thread: devices and control.
    EventLoop,
    /// A thread that runs a vCPU.
    Vcpu,
    /// A process that writes a snapshot or merges disk layers.
    Writer,
}

impl VmmThread {
    /// As JSON has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::EventLoop => "event_loop",
            Self::Vcpu => "vcpu",
            Self::Writer => "writer",
        }
    }
}

impl fmt::Display for VmmThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EventLoop => "the event loop",
            Self::Vcpu => "a vCPU thread",
            Self::Writer => "a process that writes files",
        })
    }
}

/// Counters of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// Where the machine is.
    pub phase: Phase,
    /// What executes guest ring 0.
    pub host_mode: HostMode,
    /// One per vCPU.
    #[serde(with = "capped::List::<{ VcpuCount::MAX as usize }>")]
    pub vcpus: Vec<VcpuStats>,
    /// Nanoseconds from VMM process start to the first KVM_RUN, once there.
    pub first_run_ns: Option<u64>,
    /// From VMM process start to the agent's listening, once there.
    pub boot: Option<BootMark>,
    /// INT3 instructions emulated by the VMM because KVM could not.
    pub int3_emulated: u64,
    /// FWAIT instructions skipped because KVM could not execute them.
    pub fwait_skipped: u64,
}

/// When a machine came to life: nanoseconds of CLOCK_MONOTONIC, which all processes of a host share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The VMM's process began.
    pub process_start: u64,
    /// It was confined but for its system calls, and ready to be told what machine to build.
    pub confined: u64,
    /// It knew.
    pub launched: u64,
    /// The machine was built and its vCPUs waited to be let go, once there.
    pub built: Option<u64>,
    /// The first KVM_RUN, once there.
    pub first_run: Option<u64>,
}

/// Counters of one vCPU, from KVM's own statistics (KVM_GET_STATS_FD) where this host keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Exits, all kinds.
    pub exits: u64,
    /// Instructions that KVM emulated; with [`HostMode::Pvm`] this is the guest-kernel instructions executed.
    pub insn_emulation: u64,
    /// Interrupts injected.
    pub irq_injections: u64,
    /// Exits to this VMM's port handlers.
    pub port_exits: u64,
    /// Exits to this VMM's MMIO handlers.
    pub mmio_exits: u64,
}

/// What had been spent when the agent first listened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootMark {
    /// Nanoseconds since the VMM process started.
    pub elapsed_ns: u64,
    /// Sum over vCPUs of emulated instructions.
    pub insn_emulation: u64,
    /// Sum over vCPUs of exits.
    pub exits: u64,
}

impl Message for LaunchConfig {}
impl Message for ControlRequest {}
impl Message for VmmMessage {}
