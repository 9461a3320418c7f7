//! Processes that outlive their connection or have several. Their output goes through a scrollback,
//! and a process that has ended is remembered for a while.
//!
//! ```text
//! pipes --read--> scrollback --each at its speed--> connections that watch
//! ```
//! Such a process is read whether or not a host watches it, and waits only for hosts that attend
//! it. Limits: one [`SCROLLBACK`] each, [`ALL_SCROLLBACK`] for all running processes together, and
//! [`MAX_REMEMBERED`] ended ones with [`REMEMBERED_OUTPUT`] together.

use super::clock::now;
use super::connection::{Connection, End};
use super::state::Server;
use super::streams::{MESSAGES, put_message};
use crate::process::Process;
use crate::process::scrollback::{SCROLLBACK, Scrollback};
use crate::process::scrollback_state::{ScrollbackState, Watcher};
use crate::slab::{Key, Slab};
use sandboxvm_protocol::agent::process::View;
use sandboxvm_protocol::agent::{AgentMessage, ExitStatus};
use sandboxvm_protocol::frame::MAX_STREAM_BODY;

/// Maximum number of ended processes that are remembered. If there are more, the first is
/// forgotten.
pub(super) const MAX_REMEMBERED: usize = 64;

/// Maximum size in bytes of the kept output of those.
const REMEMBERED_OUTPUT: usize = 4 << 20;

/// Maximum size in bytes of the kept output of all running processes. If there are many, each has a
/// share.
const ALL_SCROLLBACK: usize = 8 << 20;

/// How much of the output a watcher has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// There is more for it.
    Behind,
    /// It was sent everything there is now.
    UpToDate,
    /// It was sent everything that it will ever receive.
    Finished,
}

impl Server {
    /// Keeps the output of a process from now on, whether or not a host reads it.
    pub(super) fn keep(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(key).filter(|process| process.kept.is_none()) else { return };
        let mut kept = Box::new(ScrollbackState::new());
        if let Some(owner) = process.owner
            && !process.was_told
        {
            kept.join(owner, View::Attend);
        }
        kept.ended_at = process.ended.map(|_| now());
        process.kept = Some(kept);
        let sharing = self.processes.len() - self.remembered.len();
        let share = (ALL_SCROLLBACK / sharing.max(1)).min(SCROLLBACK);
        for kept in self.processes.iter_mut().filter_map(|(_, process)| process.kept.as_mut()) {
            if !kept.is_remembered {
                kept.scrollback.set_limit(share);
            }
        }
    }

    /// Moves data of one process with a scrollback, once.
    pub(super) fn serve_kept(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(key) else { return };
        let Some(mut kept) = process.kept.take() else { return };
        let behind = |watcher: &Watcher| watcher.view == View::Attend && watcher.at < kept.scrollback.end();
        if !kept.watchers.iter().any(behind) && !is_waited_for(&kept, &mut self.connections) {
            read_into(&mut kept.scrollback, process, &mut self.scratch);
        }
        let end = process.ended.filter(|_| process.is_finished());
        let ScrollbackState { scrollback, watchers, .. } = &mut *kept;
        let mut is_behind = false;
        let mut served = Vec::new();
        watchers.retain_mut(|watcher| {
            let Some(connection) = self.connections.get_mut(watcher.connection) else { return false };
            if connection.is_stalled() {
                // Epoll reports when there is room, and then this process is served again.
                return true;
            }
            let (filled, progress) = show(scrollback, watcher, end, &mut self.scratch);
            let sent = if filled > 0 { connection.transmit(&self.scratch[..filled]) } else { Ok(()) };
            is_behind |= progress == Progress::Behind && !connection.is_stalled();
            if progress == Progress::Finished {
                connection.process = None;
                connection.closing = true;
            }
            served.push((watcher.connection, sent));
            progress != Progress::Finished
        });
        if let Some(feeder) = process.feeder
            && let Some(connection) = self.connections.get_mut(feeder)
            && let Some(bytes) = process.stdin.as_mut().and_then(|stdin| stdin.take_credit())
        {
            connection.queue(&AgentMessage::StdinCredit { bytes });
            served.push((feeder, Ok(())));
        }
        let has_more = is_behind || process.has_output() && !is_waited_for(&kept, &mut self.connections);
        let has_just_ended = end.is_some() && !kept.is_remembered;
        process.kept = Some(kept);
        if has_just_ended {
            self.remember(key);
        }
        if has_more {
            self.make_due(key);
        }
        self.after_sending(served);
    }

    fn after_sending(&mut self, served: Vec<(Key, Result<(), End>)>) {
        for (connection, sent) in served {
            match sent {
                Ok(()) => self.flush(connection),
                Err(end) => self.lose_host(connection, end),
            }
        }
    }

    /// Notes that a process has ended and all its output is kept. Releases its resources, and
    /// forgets older ended processes if there are too many.
    fn remember(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(key) else { return };
        process.outputs = [None, None];
        process.stdin = None;
        process.feeder = None;
        if let Some(kept) = &mut process.kept {
            kept.is_remembered = true;
            kept.scrollback.finish();
        }
        self.remembered.push_back(key);
        while self.remembered.len() > MAX_REMEMBERED || self.remembered_output() > REMEMBERED_OUTPUT {
            let Some(first) = self.remembered.pop_front() else { break };
            self.forget(first);
        }
    }

    fn remembered_output(&mut self) -> usize {
        let kept = self.processes.iter_mut().filter_map(|(_, process)| process.kept.as_ref());
        kept.filter(|kept| kept.is_remembered).map(|kept| kept.scrollback.cost()).sum()
    }

    /// Forgets a remembered process whose PID a new process has.
    pub(super) fn pid_is_reused(&mut self, pid: u32) {
        let processes = &mut self.processes;
        let mut has_it = |key: &Key| processes.get_mut(*key).is_some_and(|process| process.number() == pid);
        if let Some(index) = self.remembered.iter().position(&mut has_it)
            && let Some(key) = self.remembered.remove(index)
        {
            self.forget(key);
        }
    }

    /// Forgets an ended process. Connections that still watch it receive the number of bytes that
    /// they miss, and its exit status.
    fn forget(&mut self, key: Key) {
        let Some(process) = self.processes.remove(key) else { return };
        let (Some(kept), Some(status)) = (process.kept, process.ended) else { return };
        for watcher in &kept.watchers {
            if let Some(connection) = self.connections.get_mut(watcher.connection) {
                let bytes = watcher.until.min(kept.scrollback.end()).saturating_sub(watcher.at);
                if bytes > 0 {
                    connection.queue(&AgentMessage::OutputDropped { bytes });
                }
                connection.queue(&AgentMessage::Exited(status));
                connection.process = None;
                connection.closing = true;
            }
            self.flush(watcher.connection);
        }
    }
}

/// Returns true while a host that attends the process reads nothing. Then the process is not read
/// either.
fn is_waited_for(kept: &ScrollbackState, connections: &mut Slab<Connection>) -> bool {
    let mut attending = kept.watchers.iter().filter(|watcher| watcher.view == View::Attend);
    attending.any(|watcher| connections.get_mut(watcher.connection).is_some_and(|connection| connection.is_stalled()))
}

/// Reads the output of a process, once from each of its streams, so that neither starves the other.
fn read_into(scrollback: &mut Scrollback, process: &mut Process, scratch: &mut [u8]) {
    for output in process.outputs.iter_mut().flatten().filter(|output| output.is_readable()) {
        let count = output.read(&mut scratch[..MAX_STREAM_BODY]);
        scrollback.push(output.kind(), &scratch[..count]);
    }
}

/// Writes the next output for a watcher into `buffer`. Returns its length, and how much the watcher
/// will then have received.
fn show(
    scrollback: &Scrollback,
    watcher: &mut Watcher,
    end: Option<ExitStatus>,
    buffer: &mut [u8],
) -> (usize, Progress) {
    let mut filled = 0;
    let until = watcher.until.min(scrollback.end());
    if watcher.at < scrollback.start().min(until) {
        let bytes = scrollback.start().min(until) - watcher.at;
        filled += put_message(&AgentMessage::OutputDropped { bytes }, buffer);
        watcher.at += bytes;
    }
    let room = buffer.len().saturating_sub(MESSAGES);
    filled += scrollback.read(&mut watcher.at, until, buffer.get_mut(filled..room).unwrap_or_default());
    if watcher.at < until {
        return (filled, Progress::Behind);
    }
    let last = match (watcher.view, end) {
        (_, Some(status)) => AgentMessage::Exited(status),
        (View::Kept, None) => AgentMessage::RunsOn,
        _ => return (filled, Progress::UpToDate),
    };
    filled += put_message(&last, buffer.get_mut(filled..).unwrap_or_default());
    (filled, Progress::Finished)
}
