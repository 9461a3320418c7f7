//! Processes run for the host: how they are found, started, fed and drained.
//!
//! ```text
//! environment  variables a process starts with
//! user         who it runs as
//! program      which file its name means
//! spawn        pipes or terminal, and the clone (`sandboxvm_spawn`); child is the part that runs between clone and exec
//! cgroups      how many there may be, and where they are counted
//! limit_counts which limits they met
//! stdin        bytes on their way into it, and the credit for them
//! output       its stdout, stderr or terminal
//! title        what it was started as, cut to be shown
//! scrollback   the last of its output, for hosts that read it later
//! scrollback_state  that, and the connections that watch the process
//! ```
//! Nothing here waits: the server does, and owns the table of [`Process`]es.

pub(crate) mod cgroups;
mod child;
mod environment;
pub(crate) mod limit_counts;
pub(crate) mod output;
mod program;
pub(crate) mod scrollback;
pub(crate) mod scrollback_state;
pub(crate) mod spawn;
pub(crate) mod stdin;
mod strings;
mod terminal;
mod title;
pub(crate) mod user;

use crate::slab::Key;
use output::Output;
use rustix::process::Pid;
use sandboxvm_protocol::agent::{ExitStatus, OnDisconnect, SignalNumber, TerminalSize};
use scrollback_state::ScrollbackState;
use stdin::Stdin;
use title::Title;

/// A process and what connects it to its host.
#[derive(Debug)]
pub(crate) struct Process {
    /// Leader of a session and of a process group, so also the ID of both.
    pub(crate) pid: Pid,
    /// What it was started as.
    pub(crate) title: Title,
    /// When, in nanoseconds of the monotonic clock.
    pub(crate) started_at: u64,
    /// The connection that started it, while it is there. Takes the output, unless something is kept.
    pub(crate) owner: Option<Key>,
    /// Its output and the connections that watch it, once there may be others than its owner. Always there for a process
    /// without an owner, except one that was killed for that.
    pub(crate) kept: Option<Box<ScrollbackState>>,
    /// The connection whose stdin it takes.
    pub(crate) feeder: Option<Key>,
    /// It was given a terminal.
    pub(crate) has_terminal: bool,
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
    /// Its end is on the way to its owner, and nothing is left to do but to see it sent.
    pub(crate) was_told: bool,
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

    /// Its PID as hosts know it.
    pub(crate) fn number(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
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
