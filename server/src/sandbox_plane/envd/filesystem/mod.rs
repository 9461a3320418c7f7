//! `filesystem.Filesystem`: what is asked of a sandbox's files but for their content.
//!
//! All is done as the request's user and, where that one may not, as root: envd does everything as root, and clients that
//! write to `/app` rely on it. What is made that way is the user's (`authority`).

mod authority;
mod change;
mod entry;
mod failure;
mod watch;
pub(super) mod watchers;
mod watching;

pub(super) use authority::{Paths, as_root, own_what_was_made, topmost_missing};
pub(super) use entry::{name, pairs};
pub(super) use failure::{Step, failed};

use super::{
    connect::{
        self, Call, Code, ConnectError,
        json::{Empty, Number},
        text,
    },
    paths::path,
};
use axum::{Router, body::Body, http::Request, routing::post};
use entry::EntryInfo;
use sandboxvm_manager::{FileDetails, FileError, FileErrorKind, FileKind, FileMetadata, FilePath};
use serde::{Deserialize, Serialize};

pub(super) fn router() -> Router {
    Router::new()
        .route("/filesystem.Filesystem/Stat", post(|request: Request<Body>| connect::unary(request, stat)))
        .route("/filesystem.Filesystem/MakeDir", post(|request: Request<Body>| connect::unary(request, make_dir)))
        .route("/filesystem.Filesystem/Move", post(|request: Request<Body>| connect::unary(request, rename)))
        .route("/filesystem.Filesystem/ListDir", post(|request: Request<Body>| connect::unary(request, list)))
        .route("/filesystem.Filesystem/Remove", post(|request: Request<Body>| connect::unary(request, remove)))
        .route(
            "/filesystem.Filesystem/WatchDir",
            post(|request: Request<Body>| connect::server_stream(request, watch::stream)),
        )
        .route(
            "/filesystem.Filesystem/CreateWatcher",
            post(|request: Request<Body>| connect::unary(request, watching::create)),
        )
        .route(
            "/filesystem.Filesystem/GetWatcherEvents",
            post(|request: Request<Body>| connect::unary(request, watching::events)),
        )
        .route(
            "/filesystem.Filesystem/RemoveWatcher",
            post(|request: Request<Body>| connect::unary(request, watching::remove)),
        )
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PathRequest {
    path: String,
}

#[derive(Debug, Serialize)]
struct EntryResponse {
    entry: EntryInfo,
}

impl From<FileDetails> for EntryResponse {
    fn from(details: FileDetails) -> Self {
        Self { entry: (&details).into() }
    }
}

async fn stat(call: Call, request: PathRequest) -> Result<EntryResponse, ConnectError> {
    let path = path(&request.path)?;
    let there = as_root(&call, path, |files, path| Box::pin(async move { files.describe(path).await })).await;
    Ok(there.map_err(|error| failed(Step::Look, error))?.into())
}

async fn make_dir(call: Call, request: PathRequest) -> Result<EntryResponse, ConnectError> {
    let path = path(&request.path)?;
    match authority::make_directory(&call, path.clone()).await {
        Ok(entry) => Ok(FileDetails { entry, target: None, metadata: FileMetadata::default() }.into()),
        // A file in the place of the directory is either of these to the guest's kernel.
        Err(error) if matches!(error.kind(), Some(FileErrorKind::AlreadyExists | FileErrorKind::NotADirectory)) => {
            let there = as_root(&call, path, |files, path| Box::pin(async move { files.stat(path, true).await })).await;
            // A file above it is not: then the path cannot be looked at.
            let Ok(there) = there else { return Err(error.into()) };
            Err(if there.kind == FileKind::Directory {
                ConnectError::new(Code::AlreadyExists, format!("directory already exists: {}", text(&there.path)))
            } else {
                ConnectError::invalid(format!("path already exists but it is not a directory: {}", text(&there.path)))
            })
        }
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MoveRequest {
    source: String,
    destination: String,
}

async fn rename(call: Call, request: MoveRequest) -> Result<EntryResponse, ConnectError> {
    let (from, to) = (path(&request.source)?, path(&request.destination)?);
    match renamed(&call, &from, &to).await {
        Err(error) if error.kind() == Some(FileErrorKind::NotFound) => {
            // Either side may be missing: directories above the new place are made.
            as_root(&call, from.clone(), |files, path| Box::pin(async move { files.stat(path, false).await }))
                .await
                .map_err(|error| failed(Step::Move, error))?;
            let Some(above) = above(&to) else { return Err(error.into()) };
            match authority::make_directory(&call, above).await {
                Ok(_) => Ok(renamed(&call, &from, &to).await?.into()),
                Err(other) if other.kind() == Some(FileErrorKind::AlreadyExists) => Err(error.into()),
                Err(other) => Err(other.into()),
            }
        }
        renamed => Ok(renamed?.into()),
    }
}

async fn renamed(call: &Call, from: &FilePath, to: &FilePath) -> Result<FileDetails, FileError> {
    let paths = (from.clone(), to.clone());
    as_root(call, paths, |files, (from, to)| Box::pin(async move { files.rename(from, to).await })).await?;
    as_root(call, to.clone(), |files, path| Box::pin(async move { files.describe(path).await })).await
}

/// The directory that a path is in, where it has one below root or home.
fn above(path: &FilePath) -> Option<FilePath> {
    let bytes = path.as_bytes();
    let trimmed = &bytes[..bytes.iter().rposition(|byte| *byte != b'/')? + 1];
    let slash = trimmed.iter().rposition(|byte| *byte == b'/')?;
    FilePath::try_from(trimmed[..slash].to_vec()).ok()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListRequest {
    path: String,
    depth: Option<Number>,
}

#[derive(Debug, Serialize)]
struct ListResponse {
    entries: Vec<EntryInfo>,
}

async fn list(call: Call, request: ListRequest) -> Result<ListResponse, ConnectError> {
    let path = path(&request.path)?;
    let depth = request.depth.unwrap_or_default().0.max(1);
    let listed =
        as_root(&call, path, |files, path| Box::pin(async move { files.list_details(path, depth).await })).await;
    let mut entries = listed.map_err(|error| failed(Step::List, error))?;
    entries.sort_by(|one, other| one.entry.path.cmp(&other.entry.path));
    Ok(ListResponse { entries: entries.iter().map(EntryInfo::from).collect() })
}

/// What is not there is removed already.
async fn remove(call: Call, request: PathRequest) -> Result<Empty, ConnectError> {
    let path = path(&request.path)?;
    match as_root(&call, path, |files, path| Box::pin(async move { files.remove(path, true).await })).await {
        Err(error) if error.kind() == Some(FileErrorKind::NotFound) => Ok(Empty {}),
        removed => removed.map(|_| Empty {}).map_err(FileError::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_clients_write_them() {
        let request: ListRequest = serde_json::from_str(r#"{"path":"/a","depth":2,"other":1}"#).unwrap();
        assert_eq!((request.path.as_str(), request.depth), ("/a", Some(Number(2))));
        assert_eq!(serde_json::from_str::<ListRequest>("{}").unwrap().path, "");
        let request: MoveRequest = serde_json::from_str(r#"{"source":"a","destination":"b"}"#).unwrap();
        assert_eq!((request.source.as_str(), request.destination.as_str()), ("a", "b"));
    }

    #[test]
    fn the_directory_above_is_found() {
        let of = |path: &str| above(&FilePath::try_from(path).unwrap()).map(|path| text(&path));
        assert_eq!(of("/a/b/c"), Some("/a/b".into()));
        assert_eq!(of("a/b/"), Some("a".into()));
        assert_eq!((of("/a"), of("a"), of("/")), (None, None, None));
    }
}
