//! Content of files from a client: one as it is, or some as parts of a form. Each is put in place when all of it has come;
//! directories above it are made.

use super::{FilesError, Query, form::Form};
use crate::sandbox_plane::{
    SharedReached,
    envd::{
        connect::Call,
        filesystem::{Paths, name, own_what_was_made, text, topmost_missing},
        paths::path,
    },
};
use axum::{
    Json,
    body::{Body, HttpBody},
    extract::Extension,
    http::{HeaderMap, Request, StatusCode, header::CONTENT_TYPE},
};
use bytes::Bytes;
use futures_util::StreamExt;
use sandboxvm_manager::{FileDone, FileSink};
use sandboxvm_protocol::agent::files::{FileErrorKind, FilePath};
use serde::Serialize;
use std::{collections::BTreeSet, error::Error};

/// Most files of one request.
const MOST: usize = 10_000;

/// What became of a file.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Written {
    name: String,
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

pub(super) async fn write<B>(
    reached: Extension<SharedReached>,
    request: Request<B>,
) -> Result<Json<Vec<Written>>, FilesError>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let query = Query::of(request.uri())?;
    let call = query.call(reached)?;
    let path = query.path.as_deref().filter(|path| !path.is_empty());
    let request = request.map(Body::new);
    match kind(request.headers()) {
        Kind::Form => form(&call, path, request).await.map(Json),
        Kind::Content => {
            let path = path.ok_or_else(|| bad("the address must have the file's path"))?;
            let mut upload = Upload::begin(&call, path).await?;
            let mut body = request.into_body().into_data_stream();
            while let Some(bytes) = body.next().await {
                upload.sink.write(&bytes.map_err(|error| bad(format!("the request broke off: {error}")))?).await?;
            }
            Ok(Json(vec![upload.finish().await?]))
        }
        Kind::Other => Err(FilesError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "a file comes as application/octet-stream, several as multipart/form-data",
        )),
    }
}

enum Kind {
    Form,
    Content,
    Other,
}

fn kind(headers: &HeaderMap) -> Kind {
    let stated = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match stated.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "multipart/form-data" => Kind::Form,
        "application/octet-stream" => Kind::Content,
        _ => Kind::Other,
    }
}

/// With a path in the address there is one file, which goes there; else each part is called what its file is.
async fn form(call: &Call, path: Option<&str>, request: Request<Body>) -> Result<Vec<Written>, FilesError> {
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
            return Err(bad(format!("{place:?}: you cannot upload multiple files to the same path")));
        }
        if places.len() > MOST {
            return Err(bad(format!("more than {MOST} files; send them in several requests")));
        }
        let mut upload = Upload::begin(call, &place).await?;
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
    async fn begin(call: &'c Call, place: &str) -> Result<Self, FilesError> {
        let path = path(place)?;
        match call.files().write(path.clone(), None, true).await {
            Err(error) if error.kind() == Some(FileErrorKind::PermissionDenied) => {
                let path = path.absolute(call).await.ok_or(error)?;
                let made = topmost_missing(call, &path).await?;
                let sink = call.sandbox().files().write(path, None, true).await?;
                Ok(Self { call, sink, made })
            }
            sink => Ok(Self { call, sink: sink?, made: None }),
        }
    }

    async fn finish(self) -> Result<Written, FilesError> {
        let FileDone::Entry(entry) = self.sink.finish().await? else {
            return Err(FilesError::new(StatusCode::INTERNAL_SERVER_ERROR, "the guest says nothing of the file"));
        };
        own_what_was_made(self.call, self.made).await?;
        let path = text(&entry.path);
        Ok(Written { name: name(&path).to_owned(), path, kind: "file" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn an_answer_is_what_clients_read() {
        let written = Written { name: "a".into(), path: "/tmp/a".into(), kind: "file" };
        assert_eq!(serde_json::to_string(&[written]).unwrap(), r#"[{"name":"a","path":"/tmp/a","type":"file"}]"#);
    }

    #[test]
    fn how_a_file_comes_is_said_by_its_type() {
        let of = |value| kind(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]));
        assert!(matches!(of("multipart/form-data; boundary=x"), Kind::Form));
        assert!(matches!(of("Application/Octet-Stream"), Kind::Content));
        assert!(matches!(of("text/plain"), Kind::Other) && matches!(kind(&HeaderMap::new()), Kind::Other));
    }
}
