//! Directories that are watched between requests: a client asks now and then what changed. What it does not ask for is kept
//! up to a bound in number and bytes; how many there may be is bounded too, since each holds one of the agent's connections.

use super::change::Change;
use crate::sandbox_plane::envd::connect::{Code, ConnectError};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::task::AbortOnDropHandle;

/// Of one sandbox at a time; its agent serves 64 requests about files.
const MOST: usize = 32;
/// Changes kept of one; older ones make room.
const KEPT: usize = 4096;
/// What those may take in memory.
const KEPT_BYTES: usize = 1 << 20;

/// The watchers of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<HashMap<String, Watcher>>);

#[derive(Debug)]
struct Watcher {
    seen: Arc<Mutex<Seen>>,
    _task: AbortOnDropHandle<()>,
}

/// What one watcher saw and its client did not ask for yet.
#[derive(Debug, Default)]
pub(super) struct Seen {
    changes: VecDeque<Change>,
    /// What they take in memory.
    bytes: usize,
    /// Why nothing follows.
    pub(super) end: Option<ConnectError>,
}

impl Seen {
    pub(super) fn add(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.changes.push_back(change);
        while self.changes.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.changes.pop_front() else { return };
            self.bytes -= oldest.bytes();
        }
    }

    fn take(&mut self) -> VecDeque<Change> {
        self.bytes = 0;
        std::mem::take(&mut self.changes)
    }
}

impl Watchers {
    /// Refuses one more watcher where there are as many as there may be.
    pub(super) fn check_room(&self) -> Result<(), ConnectError> {
        check_room(&lock(&self.0))
    }

    pub(super) fn add(
        &self,
        id: String,
        seen: Arc<Mutex<Seen>>,
        task: AbortOnDropHandle<()>,
    ) -> Result<(), ConnectError> {
        let mut watchers = lock(&self.0);
        check_room(&watchers)?;
        watchers.insert(id, Watcher { seen, _task: task });
        Ok(())
    }

    /// The changes that a watcher saw since the last time. One that has ended is removed, and its error returned, once all
    /// of its changes were taken.
    pub(super) fn take(&self, id: &str) -> Result<VecDeque<Change>, ConnectError> {
        let mut watchers = lock(&self.0);
        let watcher = watchers.get(id).ok_or_else(|| unknown(id))?;
        let (changes, end) = {
            let mut seen = lock(&watcher.seen);
            (seen.take(), seen.end.clone())
        };
        match end {
            Some(end) if changes.is_empty() => {
                watchers.remove(id);
                Err(end)
            }
            _ => Ok(changes),
        }
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        lock(&self.0).remove(id).map(|_| ()).ok_or_else(|| unknown(id))
    }
}

fn check_room(watchers: &HashMap<String, Watcher>) -> Result<(), ConnectError> {
    if watchers.len() >= MOST {
        let full = format!("{MOST} watchers at a time; remove one first");
        return Err(ConnectError::new(Code::ResourceExhausted, full));
    }
    Ok(())
}

fn unknown(id: &str) -> ConnectError {
    ConnectError::new(Code::NotFound, format!("watcher with id {id} not found"))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{ChangeKind, FileChange, FilePath, Observation};

    #[test]
    fn unread_changes_are_bounded_and_the_latest_are_kept() {
        let mut seen = Seen::default();
        for number in 0..KEPT + 5 {
            let path = FilePath::try_from(number.to_string().as_str()).ok();
            let change = FileChange { kind: ChangeKind::Created, path };
            seen.add(Change::of(&Observation { change, details: None }).unwrap());
        }
        assert_eq!(seen.changes.len(), KEPT);
        assert_eq!(seen.changes[0].name(), "5");
    }

    #[test]
    fn long_names_make_room_earlier() {
        let mut seen = Seen::default();
        for number in 0..KEPT {
            let path = FilePath::try_from(format!("{number:04}{}", "x".repeat(4000)).as_str()).ok();
            let change = FileChange { kind: ChangeKind::Written, path };
            seen.add(Change::of(&Observation { change, details: None }).unwrap());
        }
        assert!(seen.bytes <= KEPT_BYTES && seen.changes.len() > 100, "{} of {}", seen.bytes, seen.changes.len());
        assert_eq!(seen.changes.iter().map(Change::bytes).sum::<usize>(), seen.bytes);
        assert_eq!((seen.take().len() > 100, seen.bytes), (true, 0));
    }
}
