//! What the two directions of a relay share: the connection, and the requests that wait for an answer.

use super::record::Record;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long requests wait for a connection after the last one ended. A host replaces its process in
/// well under a second.
const RECONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// The same for a machine whose memory was copied, which may run before its host has started everything.
const RESTORED_WITHIN: Duration = Duration::from_secs(60);

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
    /// Whether the host holds the share: no request is sent.
    held: bool,
    /// Whether a request is being sent.
    sending: bool,
    /// What the next process of the host needs to know.
    record: Option<Record>,
    /// The body of the answer to a request of the relay itself, or none if there will be no answer.
    own: Option<Option<Vec<u8>>>,
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
    /// while the share is held, and for a connection if there is none. Returns none if there will not be one in
    /// time. After the request was sent, [`Self::is_sent`] must be called.
    pub(super) fn connection(&self, unique: Option<u64>) -> Option<Arc<OwnedFd>> {
        let mut state = self.lock();
        loop {
            if state.held {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if let Some(connection) = state.connection.clone() {
                state.waiting.extend(unique);
                state.sending = true;
                return Some(connection);
            }
            // Before the first connection, no program has started.
            let since = *state.lost.get_or_insert_with(Instant::now);
            let within = if state.record.is_some() { RESTORED_WITHIN } else { RECONNECTED_WITHIN };
            let left = within.checked_sub(since.elapsed())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes that no request is being sent any more.
    pub(super) fn is_sent(&self) {
        self.lock().sending = false;
        self.changed.notify_all();
    }

    /// Notes that a request has its answer. Returns false if it did not wait for one.
    pub(super) fn is_answered(&self, unique: u64) -> bool {
        let mut state = self.lock();
        let waited = state.waiting.remove(&unique);
        if state.held && state.waiting.is_empty() {
            self.changed.notify_all();
        }
        waited
    }

    /// Stops sending requests.
    pub(super) fn hold(&self) {
        let mut state = self.lock();
        (state.held, state.own) = (true, None);
    }

    /// Waits until no request is under way. Returns the connection, if there is one: only the caller sends on it
    /// while the share is held.
    pub(super) fn when_drained(&self) -> Option<Arc<OwnedFd>> {
        let mut state = self.lock();
        while state.sending || !state.waiting.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.connection.clone()
    }

    /// Returns the body of the answer to a request of the relay itself, or none if the connection ends.
    pub(super) fn own_answer(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = state.own.take() {
                return answer;
            }
            state.connection.as_ref()?;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes the answer to a request of the relay itself. None reports an error.
    pub(super) fn set_own_answer(&self, body: Option<Vec<u8>>) {
        self.lock().own = Some(body);
        self.changed.notify_all();
    }

    /// Returns the connection, if there is one.
    pub(super) fn current(&self) -> Option<Arc<OwnedFd>> {
        self.lock().connection.clone()
    }

    /// Keeps a record for the next process of the host.
    pub(super) fn keep(&self, record: Record) {
        self.lock().record = Some(record);
    }

    /// Returns the record for a new connection.
    pub(super) fn take_record(&self) -> Option<Record> {
        self.lock().record.take()
    }

    /// Continues to send requests. The record is of no use any more, unless this is a copy of the machine, in
    /// which the connection has ended.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        state.held = false;
        if state.connection.is_some() {
            state.record = None;
        }
        self.changed.notify_all();
    }

    /// Ends the use of the connection. Returns the requests that have no answer.
    pub(super) fn end(&self) -> Vec<u64> {
        let mut state = self.lock();
        state.connection = None;
        state.lost = Some(Instant::now());
        let failed = state.waiting.drain().collect();
        self.changed.notify_all();
        failed
    }
}
