//! Host <-> guest agent: one vsock connection per request, on which the host sends first.
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
//! Other connections can find a process again by its PID ([`process`]):
//! ```text
//! ListProcesses{after}             ->    Processes         (repeated while there are more)
//! Attach{pid, ...}                 ->    Attached, then output and Exited as above; Stdin, Signal, Resize as above
//! SignalProcess{pid, signal}       ->    Signalled
//! ```
//! A request about files has a separate connection ([`files`]). A connection can become a relay to
//! a TCP port of the guest's loopback ([`port`]):
//! ```text
//! Connect{port}                    ->
//!                                  <-    Connected | Failed
//! ```
//! The host sends nothing between `Connect` and `Connected`. After that, both directions carry the program's bytes without
//! frames, and each direction is closed separately (vsock SHUTDOWN).
//!
//! The credit of vsock limits output: if a host does not read, the process blocks and nothing
//! grows. [`AgentMessage::StdinCredit`] limits input, so that control messages behind it are never
//! stuck: the host may have sent at most [`STDIN_WINDOW`] bytes that are not credited yet.
//!
//! Postcard numbers enum variants by position: **append, never reorder or remove**. The golden file in this crate's
//! tests pins the bytes.

pub mod details;
pub mod exec;
pub mod file_entry;
pub mod files;
pub mod limits;
pub mod main_process;
pub mod mounts;
pub mod port;
pub mod process;
pub mod share;
pub mod text;
pub mod version;
pub mod workspace;

pub use exec::{
    ExecRequest, ExitStatus, MAX_ARGUMENT_COUNT, MAX_ARGUMENTS_TOTAL, OnDisconnect, SignalError, SignalNumber,
    StdinSource, TerminalSize,
};
pub use text::{CText, CTextError, MAX_ARGUMENT};
pub use version::{
    SINCE_BELOW_MOUNTS, SINCE_DISK_CHANGES, SINCE_FILE_DETAILS, SINCE_FILES, SINCE_LIMITS, SINCE_LIMITS_HIT,
    SINCE_MAIN_PROCESS, SINCE_MOUNTS, SINCE_PORTS, SINCE_PROCESSES, SINCE_SHARES, SINCE_WORKSPACES, WIRE,
};

use crate::{capped, frame::Message};
use files::{FileReply, FileRequest};
use limits::{LimitsHit, ProcessLimits};
use main_process::MainRequest;
use port::PortRequest;
use process::{AttachRequest, Attached, ProcessPage};
use serde::{Deserialize, Serialize};

/// The vsock port on which the agent listens.
pub const PORT: u32 = 1024;

/// Maximum size of a message from the host in bytes: room for a complete argv and environment.
pub const MAX_HOST_MESSAGE: usize = 2 << 20;

/// Maximum size of a message from the agent in bytes. It is small because the guest is hostile.
pub const MAX_AGENT_MESSAGE: usize = 64 * 1024;

/// Number of bytes of stdin that the host may send without credit.
pub const STDIN_WINDOW: u32 = 256 * 1024;

/// A message of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// The first message on every connection.
    Hello {
        /// Oldest wire version of the host.
        oldest: u8,
        /// Newest wire version of the host.
        newest: u8,
    },
    /// The agent responds with [`AgentMessage::Pong`].
    Ping,
    /// Runs a process on this connection.
    Exec(ExecRequest),
    /// Ends stdin.
    StdinEof,
    /// Sends a signal to the process group of this connection's process.
    Signal(SignalNumber),
    /// The size of the host's terminal changed.
    Resize(TerminalSize),
    /// Sets the identity. The first message after every restore or fork.
    SetIdentity(GuestIdentity),
    /// Shuts the machine down gracefully: processes get SIGTERM, file systems are synced, the
    /// machine resets.
    Shutdown {
        /// Time between SIGTERM and SIGKILL, in milliseconds.
        grace_ms: u32,
    },
    /// The agent responds with [`AgentMessage::Processes`]: those with a PID above `after`, in
    /// ascending order.
    ListProcesses {
        /// 0 for the first page, then the last PID of the previous page.
        after: u32,
    },
    /// Attaches to a process, which another connection may have started.
    Attach(AttachRequest),
    /// Signals the process group of a process. The agent responds with [`AgentMessage::Signalled`].
    SignalProcess {
        /// PID of the process.
        pid: u32,
        /// The signal.
        signal: SignalNumber,
    },
    /// Requests an operation on files, for which the connection is then used. The agent responds
    /// with [`AgentMessage::File`].
    Files(FileRequest),
    /// Turns this connection into a relay to a TCP port of the guest. The agent responds with
    /// [`AgentMessage::Connected`].
    Connect(PortRequest),
    /// Sets the limits of the sandbox's processes. The agent responds with
    /// [`AgentMessage::LimitsSet`].
    SetLimits(ProcessLimits),
    /// Runs the main process of the sandbox on this connection. As [`Self::Exec`] in all other respects.
    ExecMain(MainRequest),
}

impl Message for HostMessage {
    fn since(&self) -> u8 {
        match self {
            Self::ListProcesses { .. } | Self::Attach(_) | Self::SignalProcess { .. } => SINCE_PROCESSES,
            Self::Exec(request) if request.on_disconnect == OnDisconnect::Keep => SINCE_PROCESSES,
            Self::Files(request) => request.operation.since(),
            Self::Connect(_) => SINCE_PORTS,
            Self::SetLimits(_) => SINCE_LIMITS,
            Self::ExecMain(_) => SINCE_MAIN_PROCESS,
            _ => 1,
        }
    }
}

/// A message of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// Response to [`HostMessage::Hello`], with the version of this connection.
    Hello {
        /// Agreed wire version.
        version: u8,
    },
    /// Response to [`HostMessage::Ping`].
    Pong,
    /// The process was started.
    Started {
        /// Its PID in the guest.
        pid: u32,
    },
    /// The process has read this number of bytes of stdin, so the host may send as many more.
    StdinCredit {
        /// Number of bytes.
        bytes: u32,
    },
    /// The process has ended, and all its output was sent.
    Exited(ExitStatus),
    /// The identity of [`HostMessage::SetIdentity`] was set.
    IdentitySet,
    /// [`HostMessage::Shutdown`] has begun.
    ShuttingDown,
    /// The request failed; the connection closes.
    Failed(Failure),
    /// Response to [`HostMessage::ListProcesses`].
    Processes(ProcessPage),
    /// Response to [`HostMessage::Attach`]. The requested output follows.
    Attached(Attached),
    /// At this position of the output, this number of bytes is missing: no host read them in time,
    /// and they were not kept.
    OutputDropped {
        /// Number of bytes of stdout and stderr together.
        bytes: u64,
    },
    /// All kept output was sent and the process is still running. This is the last message for
    /// [`process::View::Kept`].
    RunsOn,
    /// Response to [`HostMessage::SignalProcess`].
    Signalled,
    /// Response to [`HostMessage::Files`].
    File(FileReply),
    /// Response to [`HostMessage::Connect`], and the last frame. All following bytes are those of
    /// the program.
    Connected,
    /// The limits of [`HostMessage::SetLimits`] were set.
    LimitsSet,
    /// The sandbox's programs have reached limits since the last report. It is sent before
    /// [`Self::Exited`] of a process that a host attended from its start and that did not end with
    /// 0. Hosts of older versions never receive it.
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

/// The values that distinguish a restored machine from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// Wall clock in nanoseconds since the Unix epoch, read as late as possible.
    pub wall_clock_ns: u64,
    /// New entropy of the host for the guest kernel's random numbers.
    pub entropy: [u8; 32],
    /// Hostname, and machine-id derived from the same sandbox ID.
    pub hostname: crate::ids::SandboxName,
    /// `/etc/machine-id` (machine-id(5)).
    pub machine_id: [u8; 16],
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kind of the failure, for programs.
    pub kind: FailureKind,
    /// Message for users. It is cut to [`MAX_FAILURE_TEXT`] bytes when it is sent.
    #[serde(with = "capped::Text::<MAX_FAILURE_TEXT>")]
    pub message: String,
}

/// Maximum length of [`Failure::message`] in bytes.
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
    /// The message is invalid here.
    BadRequest,
    /// Host and agent have no wire version in common.
    UnsupportedVersion,
    /// Anything else; the message says what.
    Internal,
    /// No host started a process with this PID, or it ended and was forgotten.
    NoSuchProcess,
    /// No program in the guest listens on the port.
    ConnectionRefused,
}
