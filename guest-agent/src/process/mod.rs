//! Processes of the host: how they are found, started, fed and read.
//!
//! ```text
//! start        the process of a request: program, environment, pipes or terminal, init system, clone
//! user         the user of a process
//! cgroups      their maximum number, and the groups in which they are counted
//! limit_counts which limits they reached
//! stdin        bytes for a process, and the credit for them
//! output       its stdout, stderr or terminal
//! title        the command that it was started with, cut to be shown
//! scrollback   the end of its output, for hosts that read it later
//! scrollback_state  the scrollback, and the connections that watch the process
//! ```
//! Nothing here waits: the server does, and it owns the table of [`Process`]es.

pub(crate) mod cgroups;
pub(crate) mod limit_counts;
pub(crate) mod output;
pub(crate) mod scrollback;
pub(crate) mod scrollback_state;
pub(crate) mod start;
pub(crate) mod stdin;
mod title;
pub(crate) mod user;

use crate::slab::Key;
use output::Output;
use rustix::process::Pid;
use sandboxvm_protocol::agent::{ExitStatus, OnDisconnect, SignalNumber, TerminalSize};
use scrollback_state::ScrollbackState;
use stdin::Stdin;
use title::Title;

/// A process, and its connections to hosts.
#[derive(Debug)]
pub(crate) struct Process {
    /// Leader of a session and of a process group, so also the ID of both.
    pub(crate) pid: Pid,
    /// The command that it was started with.
    pub(crate) title: Title,
    /// Time of the start, in nanoseconds of the monotonic clock.
    pub(crate) started_at: u64,
    /// The connection that started it, while it exists. It receives the output, unless the output
    /// is kept.
    pub(crate) owner: Option<Key>,
    /// The kept output and the connections that watch it, if there may be others than the owner.
    /// Every process without an owner has it, except one that was killed because its owner left.
    pub(crate) kept: Option<Box<ScrollbackState>>,
    /// The connection that feeds its stdin.
    pub(crate) feeder: Option<Key>,
    /// Whether it has a terminal.
    pub(crate) has_terminal: bool,
    /// Its stdin, until the end of input was passed on.
    pub(crate) stdin: Option<Stdin>,
    /// Its stdout and stderr, or only the terminal.
    pub(crate) outputs: [Option<Output>; 2],
    /// Which of them is read first, so that neither starves the other.
    pub(crate) first_output: usize,
    /// When it will be killed, in nanoseconds of the monotonic clock.
    pub(crate) deadline: Option<u64>,
    /// Whether it was killed at its deadline.
    pub(crate) timed_out: bool,
    /// What happens to it when the host disconnects.
    pub(crate) on_disconnect: OnDisconnect,
    /// How it ended, after it was reaped. From then on another process may have its PID.
    pub(crate) ended: Option<ExitStatus>,
    /// Whether its exit status was queued for the owner. Then nothing is left to do but to send it.
    pub(crate) was_told: bool,
    /// Whether the server will look at it in this turn.
    pub(crate) is_due: bool,
}

impl Process {
    /// Signals the process group, unless the leader was reaped.
    pub(crate) fn signal(&self, signal: SignalNumber) {
        if self.ended.is_none() {
            // SAFETY: kill(2) touches no memory. The leader is not reaped, so the group is still its own.
            unsafe { libc::kill(-self.pid.as_raw_pid(), i32::from(signal.get())) };
        }
    }

    /// Returns the PID as hosts know it.
    pub(crate) fn number(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// Sets the size of its terminal, if it has one.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let [Some(output), _] = &self.outputs
            && output.is_terminal()
        {
            start::terminal::resize(output, size);
        }
    }

    /// Notes that its leader was reaped with `status`. What its pipes contain now is the rest of
    /// its output.
    pub(crate) fn end(&mut self, status: ExitStatus) {
        self.ended = Some(if self.timed_out { ExitStatus::TimedOut } else { status });
        self.deadline = None;
        self.stdin = None;
        for output in self.outputs.iter_mut().flatten() {
            output.writer_ended();
        }
    }

    /// Returns true if it has ended and all its output was read.
    pub(crate) fn is_finished(&self) -> bool {
        self.ended.is_some() && self.outputs.iter().flatten().all(Output::is_drained)
    }

    /// Returns true if a read may return more output.
    pub(crate) fn has_output(&self) -> bool {
        self.outputs.iter().flatten().any(Output::is_readable)
    }
}
