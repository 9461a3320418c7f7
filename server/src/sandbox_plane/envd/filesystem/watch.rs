//! Changes in a directory as clients are told of them, and the stream of them.

use super::{as_root, text};
use crate::sandbox_plane::envd::{
    connect::{Call, ConnectError, Messages},
    paths::path,
    process::silence,
};
use sandboxvm_manager::FileWatch;
use sandboxvm_protocol::agent::files::{ChangeKind, FileChange};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchRequest {
    path: String,
    recursive: bool,
}

/// `filesystem.FilesystemEvent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

impl Change {
    /// Nothing where clients have no word for it.
    pub(super) fn of(change: &FileChange) -> Option<Self> {
        let kind = match change.kind {
            ChangeKind::Created => "EVENT_TYPE_CREATE",
            ChangeKind::Written => "EVENT_TYPE_WRITE",
            ChangeKind::Removed => "EVENT_TYPE_REMOVE",
            ChangeKind::Renamed => "EVENT_TYPE_RENAME",
            ChangeKind::AttributesChanged => "EVENT_TYPE_CHMOD",
            ChangeKind::Missed => return None,
        };
        Some(Self { name: change.path.as_ref().map_or_else(|| ".".to_owned(), text), kind })
    }
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
    Ok(as_root(call, path, |files, path| Box::pin(async move { files.watch(path, recursive).await })).await?)
}

pub(super) async fn stream(call: Call, request: WatchRequest, messages: Messages) -> Result<(), ConnectError> {
    let watched = async {
        let mut watch = begin(&call, &request).await?;
        messages.send(&Event::Start {}).await?;
        loop {
            let change = tokio::select! {
                change = watch.next() => change?,
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
    use sandboxvm_protocol::agent::files::FilePath;

    #[test]
    fn changes_are_told_as_clients_read_them() {
        let change = |kind, path: Option<&str>| {
            Change::of(&FileChange { kind, path: path.map(|path| FilePath::try_from(path).unwrap()) })
        };
        let text = |event| serde_json::to_string(&event).unwrap();
        assert_eq!(
            text(Event::Filesystem(change(ChangeKind::Created, Some("a/b")).unwrap())),
            r#"{"filesystem":{"name":"a/b","type":"EVENT_TYPE_CREATE"}}"#
        );
        assert_eq!(text(Event::Start {}), r#"{"start":{}}"#);
        assert_eq!(text(Event::Keepalive {}), r#"{"keepalive":{}}"#);
        assert_eq!(change(ChangeKind::Removed, None).unwrap().name, ".");
        assert_eq!(change(ChangeKind::Missed, None), None);
    }
}
