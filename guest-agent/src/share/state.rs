//! What the two directions of a relay share: the connection, and the requests that wait for an answer.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long requests wait for a connection after the last one ended. A host replaces its process in
/// well under a second.
const RECONNECTED_WITHIN: Duration = Duration::from_secs(5);

/// The state.
#[derive(Debug, Default)]
pub(super) struct State {
    connection: Option<Arc<OwnedFd>>,
    /// Requests that were sent on the connection, and have no answer yet.
    waiting: HashSet<u64>,
    /// The first request of the kernel, which begins every connection.
    init: Option<Vec<u8>>,
    /// Whether the kernel has an answer to it.
    began: bool,
    /// When the last connection ended. None before the first one.
    lost: Option<Instant>,
}

/// The state, for both threads.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the first request of the kernel, once there is one.
    pub(super) fn init(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if let Some(init) = state.init.clone() {
                return init;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes that the kernel gets an answer to INIT. Returns false if it has one already.
    pub(super) fn begins(&self) -> bool {
        !std::mem::replace(&mut self.lock().began, true)
    }

    /// Begins to use a connection.
    pub(super) fn begin(&self, connection: Arc<OwnedFd>) {
        self.lock().connection = Some(connection);
        self.changed.notify_all();
    }

    /// Notes the first request of the kernel.
    pub(super) fn set_init(&self, init: Vec<u8>) {
        self.lock().init = Some(init);
        self.changed.notify_all();
    }

    /// Returns the connection for a request, which waits for an answer from now on if it has a number. Waits
    /// for a connection if there is none. Returns none if there will not be one in time.
    pub(super) fn connection(&self, unique: Option<u64>) -> Option<Arc<OwnedFd>> {
        let mut state = self.lock();
        loop {
            if let Some(connection) = state.connection.clone() {
                state.waiting.extend(unique);
                return Some(connection);
            }
            // Before the first connection, no program has started.
            let since = *state.lost.get_or_insert_with(Instant::now);
            let left = RECONNECTED_WITHIN.checked_sub(since.elapsed())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes that a request has its answer. Returns false if it did not wait for one.
    pub(super) fn is_answered(&self, unique: u64) -> bool {
        self.lock().waiting.remove(&unique)
    }

    /// Ends the use of the connection. Returns the requests that have no answer.
    pub(super) fn end(&self) -> Vec<u64> {
        let mut state = self.lock();
        state.connection = None;
        state.lost = Some(Instant::now());
        state.waiting.drain().collect()
    }
}
