//! The archive of an image from docker's daemon, over its socket. The daemon runs as root, but what
//! it sends is checked like any archive.

use super::error::LoadError;
use crate::{manifest::printable, reference::Reference};
use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, body::Incoming, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::{error, fmt::Display, io, path::Path, time::Duration};
use tokio::{net::UnixStream, time::timeout};

/// Time in which the daemon has to send something. It may compress or copy an image first.
const IDLE: Duration = Duration::from_secs(120);
/// Maximum size in bytes of an error message.
const MAX_MESSAGE: usize = 64 << 10;

#[derive(Deserialize)]
struct Message {
    message: String,
}

/// Asks the daemon for an image, and returns the archive.
pub(crate) async fn request(
    socket: &Path,
    name: &Reference,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, LoadError> {
    let fail = |problem: &dyn Display| LoadError::Daemon {
        socket: socket.to_owned(),
        problem: printable(&problem.to_string()),
    };
    let late = || fail(&"it does not answer");
    let stream = timeout(IDLE, UnixStream::connect(socket)).await.map_err(|_| late())?;
    let stream = TokioIo::new(stream.map_err(|error| fail(&error))?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| fail(&error))?;
    tokio::spawn(connection);
    // A reference has no character that a path may not have.
    let request = Request::get(format!("/images/{name}/get")).header(HOST, "docker").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| fail(&error))?;
    let answer = timeout(IDLE, sender.send_request(request)).await.map_err(|_| late())?;
    let answer = answer.map_err(|error| fail(&error))?;
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(content(answer.into_body()));
    }
    let body = timeout(IDLE, Limited::new(answer.into_body(), MAX_MESSAGE).collect()).await;
    let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let message: Option<Message> = serde_json::from_slice(&body).ok();
    Err(message.map_or_else(|| fail(&format!("it answers {status}")), |stated| fail(&stated.message)))
}

fn content(body: Incoming) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(Some(body), |body| async {
        let mut body = body?;
        loop {
            let frame = match timeout(IDLE, body.frame()).await {
                Ok(None) => return None,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Some((Err(io::Error::other(plain(&error))), None)),
                Err(_) => return Some((Err(io::Error::other("the daemon sends nothing")), None)),
            };
            if let Ok(bytes) = frame.into_data() {
                return Some((Ok(bytes), Some(body)));
            }
        }
    })
}

/// Returns an error with its cause, which hyper does not show.
fn plain(error: &dyn error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
