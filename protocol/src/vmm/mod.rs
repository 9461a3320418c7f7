//! Manager <-> VMM: a Unix stream. The launch channel (the VMM's stdin) starts with
//! [`LaunchConfig`] and all open files that it names. Later it carries the same messages as the
//! control socket.
//!
//! Requests are answered in order, one [`VmmMessage::Reply`] each. A connection that asked to [`ControlRequest::Watch`]
//! (the launch channel always does) also gets [`VmmMessage::Event`]s between replies.
//!
//! Append enum variants, never reorder them: postcard numbers by position. A VMM and its manager may
//! be of different builds (a running sandbox outlives an upgrade).
//!
//! **Versions.** A manager launches the VMM of its bundle, which is never older, with a
//! [`LaunchConfig`] of version 2, of version 3 if the machine has a network card, of version 4 if it has slots, or of
//! version 5 if it has volumes; a VMM also reads the [`v1::LaunchConfig`] of a server that has run
//! since before an upgrade. The status file says which version a running VMM speaks
//! ([`VmStatus::wire`]). A client that knows that a VMM speaks version N states N in every frame it
//! sends, and a VMM answers in the version of the frames that it receives. [`ControlRequest::for_version`]
//! puts a request in the words of an older VMM. Requests about the network have no older words.

pub mod devices;
pub mod launch;
pub mod limits;
pub mod refusal;
pub mod requests;
pub mod stats;
pub mod status;
pub mod users;
pub mod v1;

pub use devices::{ChildDevice, DeviceConfig, DiskConfig, NetConfig, ResetDevice, SLOT_CAPACITY, VsockConfig};
pub use launch::{ConsoleConfig, LaunchConfig, MachineSource};
pub use limits::{
    FdIndex, MAX_CMDLINE_EXTRA, MAX_DEVICES, MAX_DISK_LAYERS, MAX_DISKS, MAX_FDS, MAX_FORK_CHILDREN, MAX_MEMORY_FILES,
    MAX_MESSAGE, SINCE_DEVICES, SINCE_NETWORK, SINCE_REFUSALS, SINCE_SLOTS, SINCE_VOLUMES,
};
pub use refusal::{Refusal, RefusalKind};
pub use requests::{
    ForkChild, ForkReport, ForkRequest, MergeLayersRequest, ResetReport, ResetRequest, SnapshotReport, SnapshotRequest,
};
pub use stats::{BootMark, NetworkCounters, NetworkStats, Timeline, VcpuStats, VmStats};
pub use status::{ExitReason, JailPart, MAX_TEXT, Phase, STATUS_LEN, VmStatus, VmmThread, system_call_name};

use crate::{
    capped,
    frame::{Message, Wire},
    machine::{DiskLimits, OutputRate},
};
use serde::{Deserialize, Serialize};

/// The manager <-> VMM wire.
pub const WIRE: Wire = Wire { magic: *b"SC", version: 5, oldest: 1 };

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
    /// [`Self::Fork`] as a VMM of version 1 reads it.
    ForkV1(v1::ForkRequest),
    /// [`Self::Reset`] as a VMM of version 1 reads it.
    ResetV1(v1::ResetRequest),
    /// Answered by [`ControlReply::Timeline`].
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
    /// Answered by [`ControlReply::Fork`] once the children exist.
    Fork(ForkRequest),
    /// Answered by [`ControlReply::Reset`]; the machine runs again.
    Reset(ResetRequest),
    /// Connects the network card to a socket, in place of the one before. Refused if the machine has
    /// no card.
    ///
    /// The socket is a `SOCK_SEQPACKET` Unix socket. One packet is one frame: 12 bytes of
    /// `virtio_net_hdr_v1`, then an Ethernet frame of at most the MTU and 14 bytes. The card has a link
    /// until the socket fails or the peer closes it; without a link it drops every frame.
    AttachNetwork {
        /// The socket.
        frames: FdIndex,
    },
    /// Requests the counters of the network card. Answered by [`ControlReply::NetworkStats`], or
    /// refused if the machine has no card.
    NetworkStats,
}

impl ControlRequest {
    /// Returns the request as a VMM that speaks `version` reads it, or `None` if that version lacks part of it.
    #[must_use]
    pub fn for_version(self, version: u8) -> Option<Self> {
        if self.since() <= version {
            return Some(self);
        }
        match self {
            Self::Fork(request) => v1::ForkRequest::of(request).map(Self::ForkV1),
            Self::Reset(request) => v1::ResetRequest::of(request).map(Self::ResetV1),
            _ => None,
        }
    }

    /// Returns the request in the words of the newest version, which have all that the older ones say.
    #[must_use]
    pub fn newest(self) -> Self {
        match self {
            Self::ForkV1(request) => Self::Fork(request.into()),
            Self::ResetV1(request) => Self::Reset(request.into()),
            request => request,
        }
    }
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
    /// Like [`Self::Failed`], to clients that speak version 2.
    Refused(Refusal),
    /// Counters of the network card.
    NetworkStats(NetworkStats),
}

/// An event of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmEvent {
    /// The phase changed.
    Phase(Phase),
    /// The machine has ended, or was never started. The VMM then exits.
    Ended(ExitReason),
}

impl Message for ControlRequest {
    fn since(&self) -> u8 {
        match self {
            Self::Fork(_) | Self::Reset(_) => SINCE_DEVICES,
            Self::AttachNetwork { .. } | Self::NetworkStats => SINCE_NETWORK,
            _ => 1,
        }
    }
}

impl Message for VmmMessage {
    fn since(&self) -> u8 {
        match self {
            Self::Reply(ControlReply::Refused(_)) => SINCE_REFUSALS,
            Self::Reply(ControlReply::NetworkStats(_)) => SINCE_NETWORK,
            _ => 1,
        }
    }
}
