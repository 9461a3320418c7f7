//! Processes found again by their PID: what is listed of them, and what taking part in one means.
//!
//! Only processes that a host had started are ever listed, attached to or signalled; the agent knows no others. What it
//! says of them is a guest's word: capped here, and for people to look at only.

use super::exec::{ExitStatus, TerminalSize};
use crate::capped;
use serde::{Deserialize, Serialize};

/// Most processes in one [`ProcessPage`].
pub const MAX_PAGE: usize = 32;

/// Most arguments shown of a process.
pub const MAX_SHOWN_ARGUMENTS: usize = 32;

/// Most bytes shown of one argument.
pub const MAX_SHOWN_TEXT: usize = 1024;

/// Some of the processes, in ascending order of PID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPage {
    /// At most [`MAX_PAGE`].
    #[serde(with = "capped::List::<MAX_PAGE>")]
    pub processes: Vec<ProcessInfo>,
    /// There are others above the last of these.
    pub more: bool,
}

/// A process that a host had started: one that runs, or one that ended and is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its PID in the guest.
    pub pid: u32,
    /// What it was started as; long arguments and long lists are cut.
    #[serde(with = "capped::List::<MAX_SHOWN_ARGUMENTS>")]
    pub argv: Vec<ShownText>,
    /// Something of `argv` is missing.
    pub argv_is_cut: bool,
    /// Milliseconds since it was started, by the guest's monotonic clock.
    pub age_ms: u64,
    /// Whether it runs.
    pub state: ProcessState,
    /// Its stdin takes input.
    pub stdin_is_open: bool,
    /// It was given a terminal.
    pub has_terminal: bool,
    /// Connections that take part in it now.
    pub connections: u32,
    /// Bytes of its output that are kept.
    pub kept_bytes: u64,
    /// Bytes of its output that were kept no longer, or never.
    pub dropped_bytes: u64,
}

/// Text of at most [`MAX_SHOWN_TEXT`] bytes, cut when it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownText(#[serde(with = "capped::Text::<MAX_SHOWN_TEXT>")] pub String);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// It has not ended.
    Running,
    /// It has.
    Ended {
        /// How.
        status: ExitStatus,
        /// Milliseconds since then, by the guest's monotonic clock.
        ago_ms: u64,
    },
}

/// How to take part in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Its PID.
    pub pid: u32,
    /// What to be shown of it.
    pub view: View,
    /// Feed its stdin, in place of whichever connection did so far: what that one still sends is dropped. A host whose
    /// connection ended unnoticed is thus no obstacle.
    pub stdin: bool,
    /// It has a terminal, which is to be of this size.
    pub terminal: Option<TerminalSize>,
}

/// What a connection is shown of a process. Whatever the view, the end of the connection is none of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// What is kept of its output, all that follows, its end. The process waits for a host that reads slowly.
    Attend,
    /// The same, but the process does not wait: a host that reads slowly receives the number of bytes that it missed.
    Follow,
    /// What is kept of its output, and its end if it has ended.
    Kept,
    /// Its end alone.
    End,
}

/// How a connection takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Bytes of stdin that may be sent; nothing when its stdin is not this connection's to feed.
    pub stdin_credit: Option<u32>,
}
