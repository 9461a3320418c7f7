//! The state of a process beyond one connection: the end of its output, and the connections that
//! watch it.
//!
//! A process that only its own connection attends has no such state. It is created when a process
//! outlives its connection, when the connection is reset, and when another connection joins.

use super::scrollback::Scrollback;
use crate::slab::Key;
use sandboxvm_protocol::agent::process::View;

/// A connection that watches a process.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) connection: Key,
    pub(crate) view: View,
    /// Position in the output up to which it was sent.
    pub(crate) at: u64,
    /// Position up to which it will be sent.
    pub(crate) until: u64,
}

/// The kept output and its watchers.
#[derive(Debug)]
pub(crate) struct ScrollbackState {
    pub(crate) scrollback: Scrollback,
    pub(crate) watchers: Vec<Watcher>,
    /// When the process was reaped, in nanoseconds of the monotonic clock.
    pub(crate) ended_at: Option<u64>,
    /// Whether the process has ended, all its output is here, and it counts as one of the
    /// remembered processes.
    pub(crate) is_remembered: bool,
}

impl ScrollbackState {
    pub(crate) fn new() -> Self {
        Self { scrollback: Scrollback::new(), watchers: Vec::new(), ended_at: None, is_remembered: false }
    }

    /// Adds a connection that watches the process from now on.
    pub(crate) fn join(&mut self, connection: Key, view: View) {
        let (at, until) = match view {
            View::Attend | View::Follow => (0, u64::MAX),
            View::Kept => (0, self.scrollback.end()),
            View::End => (u64::MAX, u64::MAX),
        };
        self.watchers.push(Watcher { connection, view, at, until });
    }

    pub(crate) fn leave(&mut self, connection: Key) {
        self.watchers.retain(|watcher| watcher.connection != connection);
    }
}
