//! Processes run for the host: how they are found, started, fed and drained.
//!
//! ```text
//! environment  variables a process starts with
//! user         who it runs as
//! program      which file its name means
//! spawn        pipes or terminal, and the clone; child is the part that runs between clone and exec
//! stdin        bytes on their way into it, and the credit for them
//! output       its stdout, stderr or terminal
//! ```
//! Called by the server, which owns the table of [`Process`]es and all waiting.

mod child;
mod environment;
pub(crate) mod output;
mod program;
pub(crate) mod spawn;
pub(crate) mod stdin;
mod strings;
mod terminal;
mod user;

use crate::server::slab::Key;
use output::Output;
use rustix::process::Pid;
use sandboxvm_protocol::agent::{ExitStatus, OnDisconnect, SignalNumber, TerminalSize};
use stdin::Stdin;

/// A process and what connects it to its host.
#[derive(Debug)]
pub(crate) struct Process {
    /// Leader of its own session and process group, so also their ID.
    pub(crate) pid: Pid,
    /// The host connection, while there is one.
    pub(crate) connection: Option<Key>,
    /// Way in, until its end was passed on.
    pub(crate) stdin: Option<Stdin>,
    /// Ways out: stdout and stderr, or the terminal alone.
    pub(crate) outputs: [Option<Output>; 2],
    /// Which of them to read first, so that neither starves the other.
    pub(crate) first_output: usize,
    /// When it is to be killed, in nanoseconds of the monotonic clock.
    pub(crate) deadline: Option<u64>,
    /// It was killed at its deadline.
    pub(crate) timed_out: bool,
    /// What the host's vanishing means.
    pub(crate) on_disconnect: OnDisconnect,
    /// How it ended, once it was reaped. From then on its PID is no longer ours to signal.
    pub(crate) ended: Option<ExitStatus>,
    /// The server will look at it in this turn.
    pub(crate) is_due: bool,
}

impl Process {
    /// Signals the process group, unless its leader was reaped.
    pub(crate) fn signal(&self, signal: SignalNumber) {
        if self.ended.is_none() {
            // SAFETY: kill(2) touches no memory. The leader is not reaped, so the group is still its own.
            unsafe { libc::kill(-self.pid.as_raw_pid(), i32::from(signal.get())) };
        }
    }

    /// Sets the size of its terminal, if it has one.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let [Some(output), _] = &self.outputs
            && output.is_terminal()
        {
            terminal::resize(output, size);
        }
    }

    /// Its leader was reaped with `status`: what its pipes hold now is the rest of its output.
    pub(crate) fn end(&mut self, status: ExitStatus) {
        self.ended = Some(if self.timed_out { ExitStatus::TimedOut } else { status });
        self.deadline = None;
        self.stdin = None;
        for output in self.outputs.iter_mut().flatten() {
            output.writer_ended();
        }
    }

    /// True when it ended and all its output was read.
    pub(crate) fn is_finished(&self) -> bool {
        self.ended.is_some() && self.outputs.iter().flatten().all(Output::is_drained)
    }

    /// True when reading more of its output is worth a try.
    pub(crate) fn has_output(&self) -> bool {
        self.outputs.iter().flatten().any(Output::is_readable)
    }
}
