//! Directories that are watched between requests: a client asks now and then what changed. What it does not ask for is kept
//! up to a bound in number and bytes; how many there may be is bounded too, since each holds one of the agent's connections.

use super::{
    Empty,
    watch::{Change, WatchRequest, begin},
};
use crate::{
    access::tokens::random,
    sandbox_plane::envd::connect::{Call, Code, ConnectError},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;
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

#[derive(Debug, Default)]
struct Seen {
    changes: VecDeque<Change>,
    /// What they take in memory.
    bytes: usize,
    /// Why nothing follows.
    end: Option<ConnectError>,
}

impl Seen {
    fn add(&mut self, change: Change) {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateResponse {
    watcher_id: String,
}

pub(super) async fn create(call: Call, request: WatchRequest) -> Result<CreateResponse, ConnectError> {
    let full = || ConnectError::new(Code::ResourceExhausted, format!("{MOST} watchers at a time; remove one first"));
    let reached = Arc::clone(&call.reached);
    if lock(&reached.entry.envd.watchers.0).len() >= MOST {
        return Err(full());
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (begun, is_begun) = oneshot::channel();
    let task = tokio::spawn(keep(call, request, Arc::clone(&seen), begun));
    let watcher = Watcher { seen, _task: AbortOnDropHandle::new(task) };
    is_begun.await.map_err(|_| ConnectError::new(Code::Internal, "the watch was given up"))??;
    let id = random::<8>().map_err(|error| ConnectError::new(Code::Internal, error.to_string()))?;
    let watcher_id = format!("w{}", hex::encode(id));
    let mut watchers = lock(&reached.entry.envd.watchers.0);
    if watchers.len() >= MOST {
        return Err(full());
    }
    watchers.insert(watcher_id.clone(), watcher);
    Ok(CreateResponse { watcher_id })
}

/// Watches until the end of the directory, the sandbox or the watcher.
async fn keep(
    call: Call,
    request: WatchRequest,
    seen: Arc<Mutex<Seen>>,
    begun: oneshot::Sender<Result<(), ConnectError>>,
) {
    let mut watch = match begin(&call, &request).await {
        Ok(watch) => watch,
        Err(error) => {
            let _ = begun.send(Err(error));
            return;
        }
    };
    call.reached.has_begun();
    let _ = begun.send(Ok(()));
    let end = loop {
        match watch.next_observed().await {
            Ok(Some(change)) => {
                if let Some(change) = Change::of(&change) {
                    lock(&seen).add(change);
                }
            }
            Ok(None) => break ConnectError::new(Code::NotFound, "the directory that was watched is gone"),
            Err(error) => break error.into(),
        }
    };
    lock(&seen).end = Some(end);
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct WatcherRequest {
    #[serde(alias = "watcher_id")]
    watcher_id: String,
}

#[derive(Debug, Serialize)]
pub(super) struct EventsResponse {
    events: VecDeque<Change>,
}

pub(super) async fn events(call: Call, request: WatcherRequest) -> Result<EventsResponse, ConnectError> {
    let mut watchers = lock(&call.state().watchers.0);
    let watcher = watchers.get(&request.watcher_id).ok_or_else(|| unknown(&request.watcher_id))?;
    let (events, end) = {
        let mut seen = lock(&watcher.seen);
        (seen.take(), seen.end.clone())
    };
    match end {
        // What was seen before comes first.
        Some(end) if events.is_empty() => {
            watchers.remove(&request.watcher_id);
            Err(end)
        }
        _ => Ok(EventsResponse { events }),
    }
}

pub(super) async fn remove(call: Call, request: WatcherRequest) -> Result<Empty, ConnectError> {
    let removed = lock(&call.state().watchers.0).remove(&request.watcher_id);
    removed.map(|_| Empty {}).ok_or_else(|| unknown(&request.watcher_id))
}

fn unknown(id: &str) -> ConnectError {
    ConnectError::new(Code::NotFound, format!("watcher with id {id} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::agent::{
        details::Observation,
        files::{ChangeKind, FileChange, FilePath},
    };

    #[test]
    fn what_nobody_asks_for_is_bounded_and_the_latest_stays() {
        let mut seen = Seen::default();
        for number in 0..KEPT + 5 {
            let path = FilePath::try_from(number.to_string().as_str()).ok();
            let change = FileChange { kind: ChangeKind::Created, path };
            seen.add(Change::of(&Observation { change, details: None }).unwrap());
        }
        assert_eq!(seen.changes.len(), KEPT);
        let text = serde_json::to_string(&EventsResponse { events: seen.changes }).unwrap();
        assert!(text.starts_with(r#"{"events":[{"name":"5","type":"EVENT_TYPE_CREATE"}"#), "{}", &text[..80]);
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

    #[test]
    fn requests_are_read_as_clients_write_them() {
        let request: WatcherRequest = serde_json::from_str(r#"{"watcherId":"w1"}"#).unwrap();
        assert_eq!(request.watcher_id, "w1");
        let response = CreateResponse { watcher_id: "w1".into() };
        assert_eq!(serde_json::to_string(&response).unwrap(), r#"{"watcherId":"w1"}"#);
    }
}
