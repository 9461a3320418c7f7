//! Requests of clients that ask now and then what changed, instead of keeping a stream.

use super::{
    change::Change,
    watch::{WatchRequest, begin},
    watchers::{Seen, lock},
};
use crate::{
    access::tokens::random,
    sandbox_plane::envd::connect::{Call, Code, ConnectError, json::Empty},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateResponse {
    watcher_id: String,
}

pub(super) async fn create(call: Call, request: WatchRequest) -> Result<CreateResponse, ConnectError> {
    let target = Arc::clone(&call.target);
    let watchers = &target.state().watchers;
    watchers.check_room()?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (begun, is_begun) = oneshot::channel();
    let task = tokio::spawn(keep(call, request, Arc::clone(&seen), begun));
    let task = AbortOnDropHandle::new(task);
    is_begun.await.map_err(|_| ConnectError::new(Code::Internal, "the watch was given up"))??;
    let id = random::<8>().map_err(|error| ConnectError::new(Code::Internal, error.to_string()))?;
    let watcher_id = format!("w{}", hex::encode(id));
    watchers.add(watcher_id.clone(), seen, task)?;
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
    call.target.has_begun();
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
    Ok(EventsResponse { events: call.state().watchers.take(&request.watcher_id)? })
}

pub(super) async fn remove(call: Call, request: WatcherRequest) -> Result<Empty, ConnectError> {
    call.state().watchers.remove(&request.watcher_id).map(|()| Empty {})
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{ChangeKind, FileChange, FilePath, Observation};

    #[test]
    fn requests_are_read_as_clients_write_them() {
        let request: WatcherRequest = serde_json::from_str(r#"{"watcherId":"w1"}"#).unwrap();
        assert_eq!(request.watcher_id, "w1");
        let path = FilePath::try_from("5").ok();
        let change = FileChange { kind: ChangeKind::Created, path };
        let events = Change::of(&Observation { change, details: None }).into_iter().collect();
        let text = serde_json::to_string(&EventsResponse { events }).unwrap();
        assert_eq!(text, r#"{"events":[{"name":"5","type":"EVENT_TYPE_CREATE"}]}"#);
        let response = CreateResponse { watcher_id: "w1".into() };
        assert_eq!(serde_json::to_string(&response).unwrap(), r#"{"watcherId":"w1"}"#);
    }
}
