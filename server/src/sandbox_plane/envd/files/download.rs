//! Content of a file to a client.

use super::{error::FilesError, query::Query};
use crate::sandbox_plane::envd::{
    connect::{Call, ConnectError, text},
    filesystem::{Step, as_root, failed, name},
    paths::path,
    state::SharedTarget,
};
use axum::{
    body::Body,
    extract::{Extension, Request},
    http::{
        HeaderValue, StatusCode,
        header::{ACCEPT_ENCODING, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    response::Response,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sandboxvm_manager::FilePath;
use std::io;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// On an answer that is to be compressed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compress;

/// A file that is being read.
struct Begun {
    name: String,
    /// What the guest says of its size.
    size: u64,
    first: Option<Vec<u8>>,
}

pub(super) async fn read(target: Extension<SharedTarget>, request: Request) -> Result<Response, FilesError> {
    let query = Query::of(request.uri())?;
    let call = query.call(target)?;
    let user = call.user.clone();
    let path = path(query.path.as_deref().unwrap_or_default())?;
    let (begin, begun) = oneshot::channel();
    let (sender, receiver) = mpsc::channel(1);
    let task = AbortOnDropHandle::new(tokio::spawn(send(call, path, begin, sender)));
    let begun = begun.await.map_err(|_| FilesError::new(StatusCode::INTERNAL_SERVER_ERROR, "reading was given up"))?;
    let begun = begun.map_err(|error| error.of_user(&user))?;
    let first = begun.first.map(|bytes| Ok(Bytes::from(bytes)));
    let is_all = first.is_none();
    let pieces = stream::unfold((first, receiver, task), |(first, mut receiver, task)| async move {
        let piece = match first {
            Some(first) => first,
            None => receiver.recv().await?,
        };
        Some((piece, (None, receiver, task)))
    });
    let mut response = Response::new(Body::from_stream(pieces.fuse()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_DISPOSITION, disposition(&begun.name));
    // Files of /proc have no size and yet content.
    if begun.size > 0 || is_all {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(begun.size));
    }
    // Clients' HTTP libraries take gzip among others by themselves; one who takes nothing else was asked to.
    if request.headers().get(ACCEPT_ENCODING).is_some_and(|value| value == "gzip") {
        response.extensions_mut().insert(Compress);
    }
    Ok(response)
}

/// Reads in a separate task, which stops when the client stops reading.
async fn send(
    call: Call,
    path: FilePath,
    begin: oneshot::Sender<Result<Begun, FilesError>>,
    sender: mpsc::Sender<io::Result<Bytes>>,
) {
    let opened = as_root(&call, path, |files, path| {
        Box::pin(async move {
            let mut stream = files.read(path).await?;
            let first = stream.next().await?;
            Ok((stream, first))
        })
    });
    let (mut stream, first) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            let _ = begin.send(Err(failed(Step::Read, error).into()));
            return;
        }
    };
    call.target.has_begun();
    let entry = stream.entry();
    let size = entry.size;
    let mut left = (size > 0).then_some(size);
    let path = text(&entry.path);
    // A guest that says more than it said it would is cut; one that says less breaks the answer off.
    let first = first.map(|bytes| cut(bytes, &mut left));
    let begun = Begun { name: name(&path).to_owned(), size: if first.is_some() { size } else { 0 }, first };
    if begin.send(Ok(begun)).is_err() {
        return;
    }
    loop {
        if left == Some(0) {
            return;
        }
        let piece = match stream.next().await {
            Ok(Some(bytes)) => Ok(Bytes::from(cut(bytes, &mut left))),
            Ok(None) if left.is_none() => return,
            Ok(None) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Err(error) => Err(io::Error::other(ConnectError::from(error))),
        };
        let is_end = piece.is_err();
        if sender.send(piece).await.is_err() || is_end {
            return;
        }
    }
}

fn cut(mut bytes: Vec<u8>, left: &mut Option<u64>) -> Vec<u8> {
    if let Some(left) = left {
        bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= bytes.len() as u64;
    }
    bytes
}

/// Never shown by a browser as a page of this server: what is in it is a guest's.
fn disposition(name: &str) -> HeaderValue {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let encoded: String = name
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    let value = format!("attachment; filename*=UTF-8''{encoded}");
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("attachment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_file_names_cannot_inject_headers() {
        assert_eq!(disposition("a b\"\r\n.txt"), "attachment; filename*=UTF-8''a%20b%22%0D%0A.txt");
        assert_eq!(disposition("ä"), "attachment; filename*=UTF-8''%C3%A4");
    }

    #[test]
    fn no_more_is_sent_than_was_said() {
        let mut left = Some(5);
        assert_eq!((cut(vec![1; 3], &mut left), left), (vec![1; 3], Some(2)));
        assert_eq!((cut(vec![1; 3], &mut left), left), (vec![1; 2], Some(0)));
        assert_eq!(cut(vec![1; 3], &mut None), vec![1; 3]);
    }
}
