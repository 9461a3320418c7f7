//! The start of a process: its program and user, the source of its stdin, its terminal, and its
//! end.

use super::text::CText;
use crate::capped;
use serde::{Deserialize, Serialize};

/// Maximum size of argv and environment together in bytes.
pub const MAX_ARGUMENTS_TOTAL: usize = 1 << 20;

/// Maximum number of elements of argv, and of the environment.
pub const MAX_ARGUMENT_COUNT: usize = 64 * 1024;

/// How to run a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; 1 to [`MAX_ARGUMENT_COUNT`]. A program without '/' is looked up in PATH.
    #[serde(with = "capped::List::<MAX_ARGUMENT_COUNT>")]
    pub argv: Vec<CText>,
    /// `KEY=VALUE`, in addition to the agent's defaults (PATH, HOME, USER, LOGNAME, SHELL, LANG).
    #[serde(with = "capped::List::<MAX_ARGUMENT_COUNT>")]
    pub env: Vec<CText>,
    /// Working directory; the user's home when absent.
    pub cwd: Option<CText>,
    /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest; root when absent.
    pub user: Option<CText>,
    /// Where stdin comes from.
    pub stdin: StdinSource,
    /// Gives the process a terminal of this size. Its stderr is then part of stdout.
    pub terminal: Option<TerminalSize>,
    /// Kills the process group after this number of milliseconds, and reports
    /// [`ExitStatus::TimedOut`].
    pub timeout_ms: Option<u64>,
    /// What happens to the process when the host disconnects.
    pub on_disconnect: OnDisconnect,
}

impl ExecRequest {
    /// Returns a request with only program and arguments: run as root in its home, without input,
    /// and killed when the host disconnects.
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
/// the process then keeps running in every case, and is treated as one with [`Self::Keep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDisconnect {
    /// Its process group is killed.
    Kill,
    /// It keeps running and its stdin ends. The last of what it writes from then on is kept; agents of wire version 1 drop
    /// it.
    RunOn,
    /// It keeps running, its stdin stays as it is, and the last of its output and its exit status are kept for any client
    /// that attaches to it. It never waits for a client to read its output.
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

    /// Returns the number.
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
    /// It was killed at its timeout.
    TimedOut,
}

impl ExitStatus {
    /// Returns the exit code that a shell reports: that of the process, 128 plus the signal, or 124
    /// after a timeout.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal.get(),
            Self::TimedOut => 124,
        }
    }
}
