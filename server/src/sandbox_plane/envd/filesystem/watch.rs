//! Watches a directory, and streams its changes.

use super::{Step, as_root, change::Change, failed};
use crate::sandbox_plane::envd::{
    connect::{Call, ConnectError, Messages, silence},
    paths::path,
};
use sandboxvm_manager::FileWatch;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct WatchRequest {
    path: String,
    recursive: bool,
    #[serde(alias = "include_entry")]
    include_entry: bool,
    #[serde(alias = "allow_network_mounts")]
    allow_network_mounts: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    Start {},
    Filesystem(Change),
    Keepalive {},
}

/// Begins to watch.
pub(super) async fn begin<'c>(call: &'c Call, request: &WatchRequest) -> Result<FileWatch<'c>, ConnectError> {
    let (path, recursive) = (path(&request.path)?, request.recursive);
    let (details, network) = (request.include_entry, request.allow_network_mounts);
    let begun = as_root(call, path, |files, path| {
        Box::pin(async move { files.observe(path, recursive, details, network).await })
    });
    begun.await.map_err(|error| failed(Step::Watch, error))
}

pub(super) async fn stream(call: Call, request: WatchRequest, messages: Messages) -> Result<(), ConnectError> {
    let watched = async {
        let mut watch = begin(&call, &request).await?;
        call.target.has_begun();
        messages.send(&Event::Start {}).await?;
        loop {
            let change = tokio::select! {
                change = watch.next_observed() => change?,
                () = silence(call.keepalive) => {
                    messages.send(&Event::Keepalive {}).await?;
                    continue;
                }
            };
            match change.as_ref().map(Change::of) {
                Some(Some(change)) => messages.send(&Event::Filesystem(change)).await?,
                Some(None) => {}
                None => return Ok(()),
            }
        }
    };
    match call.timeout {
        Some(within) => timeout(within, watched).await.unwrap_or_else(|_| Err(ConnectError::deadline())),
        None => watched.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{ChangeKind, FileChange, FilePath, Observation};

    #[test]
    fn changes_serialize_as_clients_expect() {
        let change = |kind, path: Option<&str>| {
            let change = FileChange { kind, path: path.map(|path| FilePath::try_from(path).unwrap()) };
            Change::of(&Observation { change, details: None })
        };
        let text = |event| serde_json::to_string(&event).unwrap();
        assert_eq!(
            text(Event::Filesystem(change(ChangeKind::Created, Some("a/b")).unwrap())),
            r#"{"filesystem":{"name":"a/b","type":"EVENT_TYPE_CREATE"}}"#
        );
        assert_eq!(text(Event::Start {}), r#"{"start":{}}"#);
        assert_eq!(text(Event::Keepalive {}), r#"{"keepalive":{}}"#);
        assert_eq!(change(ChangeKind::Removed, None).unwrap().name(), ".");
        assert_eq!(change(ChangeKind::Missed, None), None);
    }
}
