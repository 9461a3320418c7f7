//! Processes that are found again by their PID: their list, and how to attach to one.
//!
//! Only processes that a host started are listed, attached to or signalled. The agent knows no
//! others. Its reports come from a guest, so their size is limited here, and they are only for
//! users to read.

use super::exec::{ExitStatus, TerminalSize};
use crate::capped;
use serde::{Deserialize, Serialize};

/// Maximum number of processes in one [`ProcessPage`].
pub const MAX_PAGE: usize = 32;

/// Maximum number of arguments that are shown of a process.
pub const MAX_SHOWN_ARGUMENTS: usize = 32;

/// Maximum number of bytes that are shown of one argument.
pub const MAX_SHOWN_TEXT: usize = 1024;

/// A part of the list of processes, in ascending order of PID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPage {
    /// The processes, at most [`MAX_PAGE`].
    #[serde(with = "capped::List::<MAX_PAGE>")]
    pub processes: Vec<ProcessInfo>,
    /// Whether there are processes with higher PIDs.
    pub more: bool,
}

/// A process that a host started. It runs, or it has ended and is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its PID in the guest.
    pub pid: u32,
    /// The command that it was started with. Long arguments and long lists are cut.
    #[serde(with = "capped::List::<MAX_SHOWN_ARGUMENTS>")]
    pub argv: Vec<ShownText>,
    /// Whether a part of `argv` is missing.
    pub argv_is_cut: bool,
    /// Milliseconds since it was started, by the guest's monotonic clock.
    pub age_ms: u64,
    /// Whether it runs.
    pub state: ProcessState,
    /// Whether its stdin accepts input.
    pub stdin_is_open: bool,
    /// Whether it has a terminal.
    pub has_terminal: bool,
    /// Number of connections that are attached to it.
    pub connections: u32,
    /// Size of its kept output in bytes.
    pub kept_bytes: u64,
    /// Number of bytes of its output that are not kept any more, or never were.
    pub dropped_bytes: u64,
}

/// Text of at most [`MAX_SHOWN_TEXT`] bytes, cut when it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownText(#[serde(with = "capped::Text::<MAX_SHOWN_TEXT>")] pub String);

/// The state of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// It is running.
    Running,
    /// It has ended.
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Milliseconds since then, by the guest's monotonic clock.
        ago_ms: u64,
    },
}

/// How to attach to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// PID of the process.
    pub pid: u32,
    /// The output to receive.
    pub view: View,
    /// Whether to feed its stdin. The connection that fed it before is replaced, and its later
    /// input is dropped. So a host whose connection ended unnoticed does not block others.
    pub stdin: bool,
    /// The new size of its terminal.
    pub terminal: Option<TerminalSize>,
}

/// The output of a process that a connection receives. In all cases, the end of the connection does
/// not end the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// The kept output, all later output, and the exit status. The process waits for a host that
    /// reads slowly.
    Attend,
    /// As [`Self::Attend`], but the process does not wait: a host that reads slowly receives the
    /// number of missing bytes.
    Follow,
    /// The kept output, and the exit status if it has ended.
    Kept,
    /// Only the exit status.
    End,
}

/// The result of attaching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Number of bytes of stdin that may be sent. None if this connection does not feed the
    /// process.
    pub stdin_credit: Option<u32>,
}
