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
//! What is done with files has a connection of its own ([`files`]).
//! A connection can become one to a TCP port of the guest's loopback ([`port`]):
//! ```text
//! Connect{port}                    ->
//!                                  <-    Connected | Failed
//! ```
//! The host sends nothing between `Connect` and `Connected`; from there on both directions are bytes without frames, each
//! with an end of its own (vsock SHUTDOWN), and a connection to the program in the guest is at the other end of them.
//!
//! Output is held back by vsock credit: a host that does not read stalls the process and nothing grows. Input is held
//! back by [`AgentMessage::StdinCredit`], so that control messages behind it are never stuck: the host may have at
//! most [`STDIN_WINDOW`] bytes sent and not yet credited.
//!
//! Postcard numbers enum variants by position: **append, never reorder or remove**. The golden file in this crate's
//! tests pins the bytes.

pub mod details;
pub mod files;
pub mod limits;
pub mod port;
pub mod process;

use crate::{
    capped,
    frame::{Message, Wire},
};
use files::{FileReply, FileRequest};
use limits::{LimitsHit, ProcessLimits};
use port::PortRequest;
use process::{AttachRequest, Attached, ProcessPage};
use serde::{Deserialize, Serialize};

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

/// vsock port the agent listens on.
pub const PORT: u32 = 1024;

/// Largest message from the host in bytes: room for a full argv and environment.
pub const MAX_HOST_MESSAGE: usize = 2 << 20;

/// Largest message from the agent in bytes. The guest is hostile: small.
pub const MAX_AGENT_MESSAGE: usize = 64 * 1024;

/// Bytes of stdin that may be under way without credit.
pub const STDIN_WINDOW: u32 = 256 * 1024;

/// Longest single argument or environment string, in bytes without its NUL (Linux `MAX_ARG_STRLEN` less one).
pub const MAX_ARGUMENT: usize = 128 * 1024 - 1;

/// Most bytes of argv and environment together.
pub const MAX_ARGUMENTS_TOTAL: usize = 1 << 20;

/// Most elements of argv, and of the environment.
pub const MAX_ARGUMENT_COUNT: usize = 64 * 1024;

/// Why a byte string cannot be handed to a C interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CTextError {
    /// Contains a NUL byte.
    #[error("contains a NUL byte at offset {0}")]
    Nul(usize),
    /// Too long for one exec argument.
    #[error("{0} bytes is longer than the {MAX_ARGUMENT} bytes that Linux accepts in one argument")]
    TooLong(usize),
}

/// Bytes without NUL, at most [`MAX_ARGUMENT`] long: an argument, `KEY=VALUE`, path or user name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct CText(Vec<u8>);

impl CText {
    /// The bytes, without a terminating NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for CText {
    type Error = CTextError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, CTextError> {
        if bytes.len() > MAX_ARGUMENT {
            return Err(CTextError::TooLong(bytes.len()));
        }
        match bytes.iter().position(|b| *b == 0) {
            Some(at) => Err(CTextError::Nul(at)),
            None => Ok(Self(bytes)),
        }
    }
}

impl TryFrom<&str> for CText {
    type Error = CTextError;

    fn try_from(text: &str) -> Result<Self, CTextError> {
        Self::try_from(text.as_bytes().to_vec())
    }
}

impl From<CText> for Vec<u8> {
    fn from(text: CText) -> Self {
        text.0
    }
}

/// What the host sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// First on every connection.
    Hello {
        /// Oldest wire version the host can go on with.
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
    /// First after every restore or fork, before anything else is let through.
    SetIdentity(GuestIdentity),
    /// End the machine in order: processes get SIGTERM, filesystems are synced, the machine resets.
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
    /// At this place of the output so many bytes are missing: nobody took them in time, and they were not kept.
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

/// How a process is to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; 1 to [`MAX_ARGUMENT_COUNT`]. A program without '/' is looked up in PATH.
    #[serde(with = "capped::List::<MAX_ARGUMENT_COUNT>")]
    pub argv: Vec<CText>,
    /// `KEY=VALUE`, over the agent's defaults (PATH, HOME, USER, LOGNAME, SHELL, LANG).
    #[serde(with = "capped::List::<MAX_ARGUMENT_COUNT>")]
    pub env: Vec<CText>,
    /// Working directory; the user's home when absent.
    pub cwd: Option<CText>,
    /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest; root when absent.
    pub user: Option<CText>,
    /// Where stdin comes from.
    pub stdin: StdinSource,
    /// Give the process a terminal of this size; stderr then arrives as stdout.
    pub terminal: Option<TerminalSize>,
    /// Kill the process group after this many milliseconds and report [`ExitStatus::TimedOut`].
    pub timeout_ms: Option<u64>,
    /// What the host's vanishing means for the process.
    pub on_disconnect: OnDisconnect,
}

impl ExecRequest {
    /// Program and arguments, and nothing else: as root at home, with no input, killed when the host vanishes.
    #[must_use]
    pub fn plain(argv: Vec<CText>) -> Self {
        Self {
            argv,
            env: Vec::new(),
            cwd: None,
            user: None,
            stdin: StdinSource::Null,
            terminal: None,
            timeout_ms: None,
            on_disconnect: OnDisconnect::Kill,
        }
    }
}

/// Where a process reads its stdin from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdinSource {
    /// `/dev/null`.
    Null,
    /// Stdin frames of this connection.
    Connection,
}

/// What happens to a process whose connection ends before it does. A transport reset (restore, fork) is not an end:
/// the process then always runs on, and is from then on as one with [`Self::Keep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDisconnect {
    /// SIGKILL to its process group.
    Kill,
    /// It runs on and its stdin ends. The last of what it writes from then on is kept; agents of wire version 1 drop it.
    RunOn,
    /// It runs on, its stdin stays as it is, and the last of its output and its exit status are kept for whoever
    /// attaches to it. Nobody need ever take its output: it never waits for that.
    Keep,
}

/// A terminal's size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A Linux signal number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct SignalNumber(u8);

impl SignalNumber {
    /// SIGKILL.
    pub const KILL: Self = Self(9);
    /// SIGTERM.
    pub const TERM: Self = Self(15);

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

/// Not a signal number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid signal number {0}: must be between 1 and 64")]
pub struct SignalError(u8);

impl TryFrom<u8> for SignalNumber {
    type Error = SignalError;

    fn try_from(number: u8) -> Result<Self, SignalError> {
        if (1..=64).contains(&number) { Ok(Self(number)) } else { Err(SignalError(number)) }
    }
}

impl From<SignalNumber> for u8 {
    fn from(signal: SignalNumber) -> Self {
        signal.0
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called exit with this code.
    Code(u8),
    /// It was killed by this signal.
    Signal(SignalNumber),
    /// It ran out of its time and was killed.
    TimedOut,
}

/// What makes one restored machine differ from the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// Wall clock, nanoseconds since the Unix epoch, read as late as possible.
    pub wall_clock_ns: u64,
    /// Fresh host entropy for the guest kernel's RNG.
    pub entropy: [u8; 32],
    /// Hostname, and machine-id derived from the same sandbox ID.
    pub hostname: crate::identity::SandboxName,
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
