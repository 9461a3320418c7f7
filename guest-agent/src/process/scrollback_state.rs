//! What is kept of a process beyond one connection: the last of its output, and who looks at it.
//!
//! A process that its own connection attends to the end never has any of this. It comes into being when a process is
//! to outlive its connection, when that is reset, and when another connection joins.

use super::scrollback::Scrollback;
use crate::slab::Key;
use sandboxvm_protocol::agent::process::View;

/// A connection that takes part in a process.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) connection: Key,
    pub(crate) view: View,
    /// Position in the output up to which it was shown.
    pub(crate) at: u64,
    /// Position up to which it is to be shown.
    pub(crate) until: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ScrollbackState {
    pub(crate) scrollback: Scrollback,
    pub(crate) watchers: Vec<Watcher>,
    /// When the process was reaped, in nanoseconds of the monotonic clock.
    pub(crate) ended_at: Option<u64>,
    /// It ended, all its output is here, and it counts among those that are remembered.
    pub(crate) is_remembered: bool,
}

impl ScrollbackState {
    pub(crate) fn new() -> Self {
        Self { scrollback: Scrollback::new(), watchers: Vec::new(), ended_at: None, is_remembered: false }
    }

    /// Shows the process to `connection` from here on.
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
