//! Content of files from a client: one as it is, or some as parts of a form. Each is put in place when all of it has come;
//! directories above it are made.

use super::{error::FilesError, form::Form, metadata, query::Query};
use crate::sandbox_plane::envd::{
    connect::{Call, text},
    filesystem::{Paths, Step, failed, name, own_what_was_made, pairs, topmost_missing},
    paths::path,
    state::SharedTarget,
};
use axum::{
    Json,
    body::{Body, HttpBody},
    extract::Extension,
    http::{HeaderMap, Request, StatusCode, header::CONTENT_TYPE},
};
use bytes::Bytes;
use futures_util::StreamExt;
use sandboxvm_manager::{FileErrorKind, FileMetadata, FilePath, FileSink};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

/// Most files of one request.
const MOST: usize = 10_000;

/// What became of a file.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Written {
    name: String,
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

pub(super) async fn write<B>(
    target: Extension<SharedTarget>,
    request: Request<B>,
) -> Result<Json<Vec<Written>>, FilesError>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let query = Query::of(request.uri())?;
    let call = query.call(target)?;
    let path = query.path.as_deref().filter(|path| !path.is_empty());
    let written = take(&call, path, request.map(Body::new)).await;
    written.map(Json).map_err(|error| error.of_user(&call.user))
}

async fn take(call: &Call, path: Option<&str>, request: Request<Body>) -> Result<Vec<Written>, FilesError> {
    let metadata = metadata::of(request.headers())?;
    match kind(request.headers()) {
        Kind::Form => form(call, path, &metadata, request).await,
        Kind::Content => {
            let path = path.ok_or_else(|| bad("path query parameter is required for raw body upload"))?;
            let mut upload = Upload::begin(call, path, &metadata).await?;
            let mut body = request.into_body().into_data_stream();
            while let Some(bytes) = body.next().await {
                upload.sink.write(&bytes.map_err(|error| bad(format!("the request broke off: {error}")))?).await?;
            }
            Ok(vec![upload.finish().await?])
        }
        Kind::Other(stated) => Err(bad(format!(
            "unsupported content type: {stated}, expected multipart/form-data or application/octet-stream"
        ))),
    }
}

enum Kind {
    Form,
    Content,
    Other(String),
}

fn kind(headers: &HeaderMap) -> Kind {
    let stated = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match stated.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "multipart/form-data" => Kind::Form,
        "application/octet-stream" => Kind::Content,
        _ => Kind::Other(stated.escape_default().to_string()),
    }
}

/// With a path in the address there is one file, which goes there; else each part is called what its file is.
async fn form(
    call: &Call,
    path: Option<&str>,
    metadata: &FileMetadata,
    request: Request<Body>,
) -> Result<Vec<Written>, FilesError> {
    let (parts, body) = request.into_parts();
    let mut form = Form::of(&parts.headers, body)?;
    let (mut written, mut places) = (Vec::new(), BTreeSet::new());
    while let Some(part) = form.next().await? {
        if part.name.as_deref() != Some("file") {
            continue;
        }
        let place = match path {
            Some(path) => path.to_owned(),
            None => part
                .file_name
                .filter(|name| !name.is_empty())
                .ok_or_else(|| bad("a part without the name of its file, and no path in the address"))?,
        };
        if !places.insert(place.clone()) {
            return Err(bad(format!(
                "you cannot upload multiple files to the same path '{place}' in one upload request, only the first \
                 specified file was uploaded"
            )));
        }
        if places.len() > MOST {
            return Err(bad(format!("more than {MOST} files; send them in several requests")));
        }
        let mut upload = Upload::begin(call, &place, metadata).await?;
        while let Some(bytes) = form.chunk().await? {
            upload.sink.write(&bytes).await?;
        }
        written.push(upload.finish().await?);
    }
    if written.is_empty() { Err(bad("the form has no part that is called file")) } else { Ok(written) }
}

fn bad(message: impl Into<String>) -> FilesError {
    FilesError::new(StatusCode::BAD_REQUEST, message)
}

/// A file on its way. Dropped, it never was, and what it was to replace is as it was.
struct Upload<'c> {
    call: &'c Call,
    sink: FileSink<'c>,
    /// What is to be given to the user when it is there: root had to make it.
    made: Option<FilePath>,
}

impl<'c> Upload<'c> {
    async fn begin(call: &'c Call, place: &str, metadata: &FileMetadata) -> Result<Self, FilesError> {
        let path = path(place)?;
        match call.files().write_with_metadata(path.clone(), None, true, metadata.clone()).await {
            Err(error) if error.kind() == Some(FileErrorKind::PermissionDenied) => {
                let path = path.absolute(call).await.ok_or(error)?;
                let made = topmost_missing(call, &path).await?;
                let sink = call.sandbox().files().write_with_metadata(path, None, true, metadata.clone()).await?;
                Ok(Self { call, sink, made })
            }
            sink => Ok(Self { call, sink: sink.map_err(|error| failed(Step::Write, error))?, made: None }),
        }
    }

    async fn finish(self) -> Result<Written, FilesError> {
        let written = self.sink.finish_described().await?;
        own_what_was_made(self.call, self.made).await?;
        let path = text(&written.entry.path);
        Ok(Written { name: name(&path).to_owned(), path, kind: "file", metadata: pairs(&written.metadata) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn an_answer_is_what_clients_read() {
        let written = |metadata| {
            let written = Written { name: "a".into(), path: "/tmp/a".into(), kind: "file", metadata };
            serde_json::to_string(&[written]).unwrap()
        };
        assert_eq!(written(BTreeMap::new()), r#"[{"name":"a","path":"/tmp/a","type":"file"}]"#);
        let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        assert_eq!(written(metadata), r#"[{"name":"a","path":"/tmp/a","type":"file","metadata":{"k":"v"}}]"#);
    }

    #[test]
    fn how_a_file_comes_is_said_by_its_type() {
        let of = |value| kind(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]));
        assert!(matches!(of("multipart/form-data; boundary=x"), Kind::Form));
        assert!(matches!(of("Application/Octet-Stream"), Kind::Content));
        assert!(matches!(of("text/plain"), Kind::Other(stated) if stated == "text/plain"));
        assert!(matches!(kind(&HeaderMap::new()), Kind::Other(_)));
    }
}
