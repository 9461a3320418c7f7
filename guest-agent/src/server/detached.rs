//! Processes that outlive their connection, or have several: what they write goes through a scrollback, and what ends
//! is remembered for a while.
//!
//! ```text
//! pipes --read--> scrollback --each at its own pace--> connections that watch
//! ```
//! Such a process is read from whether or not a host watches it, and waits only for hosts that attend it. Bounds: one
//! [`SCROLLBACK`] each, [`ALL_SCROLLBACK`] of all that run together, [`MAX_REMEMBERED`] that ended with
//! [`REMEMBERED_OUTPUT`] between them.

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

/// Most processes that ended and are remembered; one more, and the first is forgotten.
pub(super) const MAX_REMEMBERED: usize = 64;

/// Most kept of the output of those, in bytes.
const REMEMBERED_OUTPUT: usize = 4 << 20;

/// Most kept of the output of all processes that run, in bytes: with many, each has its share.
const ALL_SCROLLBACK: usize = 8 << 20;

/// How far a watcher was brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// There is more for it.
    Behind,
    /// It was sent all there is now.
    UpToDate,
    /// It was sent all that it will ever be.
    Finished,
}

impl Server {
    /// Keeps the output of a process from now on, whether or not a host takes it.
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

    /// Moves what can be moved of one process that has a scrollback, once.
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
                // Its room is watched: that brings this process back.
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

    /// A process ended and all its output is kept: releases what it still holds, and forgets processes that ended before it
    /// if there are too many now.
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

    /// A process starts with this PID: a remembered process that had the same PID is forgotten.
    pub(super) fn pid_is_reused(&mut self, pid: u32) {
        let processes = &mut self.processes;
        let mut has_it = |key: &Key| processes.get_mut(*key).is_some_and(|process| process.number() == pid);
        if let Some(index) = self.remembered.iter().position(&mut has_it)
            && let Some(key) = self.remembered.remove(index)
        {
            self.forget(key);
        }
    }

    /// Forgets a process that ended. Connections that still watch it receive the number of bytes that they miss, and its exit
    /// status.
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

/// True while a host that attends the process takes nothing: then the process is not read from either.
fn is_waited_for(kept: &ScrollbackState, connections: &mut Slab<Connection>) -> bool {
    let mut attending = kept.watchers.iter().filter(|watcher| watcher.view == View::Attend);
    attending.any(|watcher| connections.get_mut(watcher.connection).is_some_and(|connection| connection.is_stalled()))
}

/// Takes what a process wrote: once from each of its streams, so that neither starves the other.
fn read_into(scrollback: &mut Scrollback, process: &mut Process, scratch: &mut [u8]) {
    for output in process.outputs.iter_mut().flatten().filter(|output| output.is_readable()) {
        let count = output.read(&mut scratch[..MAX_STREAM_BODY]);
        scrollback.push(output.kind(), &scratch[..count]);
    }
}

/// Puts what a watcher is to be sent next into `buffer`. The value is its length, and how far that brings the watcher.
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
