//! Host <-> guest agent: one vsock connection per request, host speaks first.
//!
//! ```text
//! host                                   agent
//! Hello{oldest,newest} + request   ->                      (pipelined: one write, one packet)
//!                                  <-    Hello{version} + Started{pid} | Failed
//! Stdin frames, within credit      ->
//!                                  <-    Stdout / Stderr frames, StdinCredit
//! Signal, Resize, StdinEof         ->
//!                                  <-    Exited             (last message; then the agent closes)
//! ```
//! A process can be found again on other connections, by its PID ([`process`]):
//! ```text
//! ListProcesses{after}             ->    Processes         (asked again while there are more)
//! Attach{pid, ...}                 ->    Attached, then output and Exited as above; Stdin, Signal, Resize as above
//! SignalProcess{pid, signal}       ->    Signalled
//! ```
//! A request for files has a separate connection ([`files`]).
//! A connection can become one to a TCP port of the guest's loopback ([`port`]):
//! ```text
//! Connect{port}                    ->
//!                                  <-    Connected | Failed
//! ```
//! The host sends nothing between `Connect` and `Connected`. After that, both directions carry the program's bytes without
//! frames, and each direction is closed separately (vsock SHUTDOWN).
//!
//! Output is held back by vsock credit: a host that does not read stalls the process and nothing grows. Input is held
//! back by [`AgentMessage::StdinCredit`], so that control messages behind it are never stuck: the host may have at
//! most [`STDIN_WINDOW`] bytes sent and not yet credited.
//!
//! Postcard numbers enum variants by position: **append, never reorder or remove**. The golden file in this crate's
//! tests pins the bytes.

pub mod details;
pub mod exec;
pub mod file_entry;
pub mod files;
pub mod limits;
pub mod port;
pub mod process;
pub mod text;
pub mod version;

pub use exec::{
    ExecRequest, ExitStatus, MAX_ARGUMENT_COUNT, MAX_ARGUMENTS_TOTAL, OnDisconnect, SignalError, SignalNumber,
    StdinSource, TerminalSize,
};
pub use text::{CText, CTextError, MAX_ARGUMENT};
pub use version::{
    SINCE_FILE_DETAILS, SINCE_FILES, SINCE_LIMITS, SINCE_LIMITS_HIT, SINCE_PORTS, SINCE_PROCESSES, WIRE,
};

use crate::{capped, frame::Message};
use files::{FileReply, FileRequest};
use limits::{LimitsHit, ProcessLimits};
use port::PortRequest;
use process::{AttachRequest, Attached, ProcessPage};
use serde::{Deserialize, Serialize};

/// vsock port the agent listens on.
pub const PORT: u32 = 1024;

/// Largest message from the host in bytes: room for a full argv and environment.
pub const MAX_HOST_MESSAGE: usize = 2 << 20;

/// Largest message from the agent in bytes. The guest is hostile: small.
pub const MAX_AGENT_MESSAGE: usize = 64 * 1024;

/// Bytes of stdin that may be under way without credit.
pub const STDIN_WINDOW: u32 = 256 * 1024;

/// What the host sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// First on every connection.
    Hello {
        /// Oldest wire version that the host speaks.
        oldest: u8,
        /// Newest.
        newest: u8,
    },
    /// Answered by [`AgentMessage::Pong`].
    Ping,
    /// Run a process on this connection.
    Exec(ExecRequest),
    /// No more stdin follows.
    StdinEof,
    /// Send a signal to the process group of this connection's process.
    Signal(SignalNumber),
    /// The host's terminal changed size.
    Resize(TerminalSize),
    /// The first message after every restore or fork.
    SetIdentity(GuestIdentity),
    /// Shut the machine down gracefully: processes get SIGTERM, filesystems are synced, the machine resets.
    Shutdown {
        /// How long processes have between SIGTERM and SIGKILL, in milliseconds.
        grace_ms: u32,
    },
    /// Answered by [`AgentMessage::Processes`]: those with a PID above `after`, in ascending order.
    ListProcesses {
        /// 0 for the first page, then the last PID of the page before.
        after: u32,
    },
    /// Take part in a process from here, also one that another connection started.
    Attach(AttachRequest),
    /// Signal the process group of a process. Answered by [`AgentMessage::Signalled`].
    SignalProcess {
        /// Its PID.
        pid: u32,
        /// What to send.
        signal: SignalNumber,
    },
    /// Do something with files; the connection is for nothing else from here on. Answered by [`AgentMessage::File`].
    Files(FileRequest),
    /// Make this connection one to a TCP port of the guest. Answered by [`AgentMessage::Connected`].
    Connect(PortRequest),
    /// What the sandbox's processes may have from here on. Answered by [`AgentMessage::LimitsSet`].
    SetLimits(ProcessLimits),
}

impl Message for HostMessage {
    fn since(&self) -> u8 {
        match self {
            Self::ListProcesses { .. } | Self::Attach(_) | Self::SignalProcess { .. } => SINCE_PROCESSES,
            Self::Exec(request) if request.on_disconnect == OnDisconnect::Keep => SINCE_PROCESSES,
            Self::Files(request) => request.operation.since(),
            Self::Connect(_) => SINCE_PORTS,
            Self::SetLimits(_) => SINCE_LIMITS,
            _ => 1,
        }
    }
}

/// What the agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// Answer to [`HostMessage::Hello`]: the version spoken from here on.
    Hello {
        /// Agreed wire version.
        version: u8,
    },
    /// Answer to [`HostMessage::Ping`].
    Pong,
    /// The process exists.
    Started {
        /// Its PID in the guest.
        pid: u32,
    },
    /// The process took this many bytes of stdin: as many more may be sent.
    StdinCredit {
        /// Bytes.
        bytes: u32,
    },
    /// The process is gone and all its output was sent.
    Exited(ExitStatus),
    /// [`HostMessage::SetIdentity`] is in force.
    IdentitySet,
    /// [`HostMessage::Shutdown`] has begun.
    ShuttingDown,
    /// The request failed; the connection closes.
    Failed(Failure),
    /// Answer to [`HostMessage::ListProcesses`].
    Processes(ProcessPage),
    /// Answer to [`HostMessage::Attach`]; output follows as asked for.
    Attached(Attached),
    /// At this place of the output, this many bytes are missing: no host read them in time, and they were not kept.
    OutputDropped {
        /// Bytes of stdout and stderr together.
        bytes: u64,
    },
    /// All that was kept of the output was sent and the process has not ended: the last message to
    /// [`process::View::Kept`].
    RunsOn,
    /// Answer to [`HostMessage::SignalProcess`].
    Signalled,
    /// Answer to [`HostMessage::Files`].
    File(FileReply),
    /// Answer to [`HostMessage::Connect`], and the last frame: what follows are the program's bytes.
    Connected,
    /// [`HostMessage::SetLimits`] is in force.
    LimitsSet,
    /// The sandbox's programs met limits since a host was last told so. Before [`Self::Exited`] of a process that a host
    /// attends from its start and that ended other than with 0; never to hosts of an older version.
    LimitsHit(LimitsHit),
}

impl Message for AgentMessage {
    fn since(&self) -> u8 {
        match self {
            Self::Processes(_) | Self::Attached(_) | Self::OutputDropped { .. } | Self::RunsOn | Self::Signalled => {
                SINCE_PROCESSES
            }
            Self::File(reply) => reply.since(),
            Self::Connected => SINCE_PORTS,
            Self::Failed(failure) => match failure.kind {
                FailureKind::NoSuchProcess => SINCE_PROCESSES,
                FailureKind::ConnectionRefused => SINCE_PORTS,
                _ => 1,
            },
            Self::LimitsSet => SINCE_LIMITS,
            Self::LimitsHit(_) => SINCE_LIMITS_HIT,
            _ => 1,
        }
    }
}

/// What makes one restored machine differ from the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// Wall clock, nanoseconds since the Unix epoch, read as late as possible.
    pub wall_clock_ns: u64,
    /// Fresh host entropy for the guest kernel's RNG.
    pub entropy: [u8; 32],
    /// Hostname, and machine-id derived from the same sandbox ID.
    pub hostname: crate::ids::SandboxName,
    /// `/etc/machine-id` (machine-id(5)).
    pub machine_id: [u8; 16],
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people; cut to [`MAX_FAILURE_TEXT`] bytes when it is sent.
    #[serde(with = "capped::Text::<MAX_FAILURE_TEXT>")]
    pub message: String,
}

/// Cap on [`Failure::message`], in bytes.
pub const MAX_FAILURE_TEXT: usize = 4096;

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Program not found: exit code 127.
    NotFound,
    /// Program found but not executable: exit code 126.
    NotExecutable,
    /// Working directory missing or not a directory.
    BadWorkingDirectory,
    /// No such user or group in the guest.
    NoSuchUser,
    /// Argument list too long, too many processes or no memory in the guest.
    Resources,
    /// The message makes no sense here.
    BadRequest,
    /// No wire version in common.
    UnsupportedVersion,
    /// Anything else; the message says what.
    Internal,
    /// No host started a process with this PID, or it was forgotten since it ended.
    NoSuchProcess,
    /// Nothing in the guest listens on the port.
    ConnectionRefused,
}
