//! The Connect protocol, as far as E2B's clients speak it: JSON alone, POST alone.
//!
//! ```text
//! unary           application/json in, application/json out; errors are {code, message} with their HTTP status
//! server stream   one frame in, frames out; the last says how it ended, the status is always 200
//! client stream   frames in, one frame and the end out
//! ```
//! Calls are given a [`Call`] and messages; they know nothing of HTTP. A server's stream is made by a task of its own that
//! holds one message beyond the one on its way: a client that does not read stalls it, one that goes away ends it.

mod body;
mod call;
mod client;
mod error;
mod frame;
pub(super) mod json;
mod text;

pub(super) use call::Call;
pub(super) use error::{Code, ConnectError};
pub(super) use text::text;

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderValue, Request, StatusCode,
        header::{CONTENT_TYPE, HeaderName},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use client::Client;
use frame::Frames;
use futures_util::{StreamExt, stream};
use serde::{Serialize, de::DeserializeOwned};
use std::{convert::Infallible, future::Future, time::Duration};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

const UNARY: &str = "application/json";
const STREAM: &str = "application/connect+json";
const STREAM_ENCODING: &str = "connect-content-encoding";

/// One message in, one out.
pub(super) async fn unary<Q, A, F>(request: Request<Body>, answer: impl FnOnce(Call, Q) -> F) -> Response
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = Result<A, ConnectError>>,
{
    let (parts, body) = request.into_parts();
    if !is(&parts.headers, UNARY) {
        return unsupported(UNARY);
    }
    let answered = async {
        let call = Call::of(&parts)?;
        let within = call.timeout;
        let client = Client::of(&parts.headers, call.user.as_bytes());
        let work = async { answer(call, body::read(&parts.headers, body).await?).await };
        let answered = match within {
            Some(within) => timeout(within, work).await.unwrap_or_else(|_| Err(ConnectError::deadline())),
            None => work.await,
        };
        answered.map_err(|error| client.word(error))
    };
    match answered.await {
        Ok(message) => body::answer(&parts.headers, &message),
        Err(error) => error.into_response(),
    }
}

/// One message in, any number out.
pub(super) async fn server_stream<Q, F>(
    request: Request<Body>,
    answer: impl FnOnce(Call, Q, Messages) -> F + Send + 'static,
) -> Response
where
    Q: DeserializeOwned + Send + 'static,
    F: Future<Output = Result<(), ConnectError>> + Send,
{
    let (parts, body) = request.into_parts();
    if !is(&parts.headers, STREAM) {
        return unsupported(STREAM);
    }
    let asked = async {
        let mut frames = Frames::of(body, body::is_gzip(&parts.headers, STREAM_ENCODING)?);
        let message: Q = frames.next().await?.ok_or_else(|| ConnectError::invalid("the request has no message"))?;
        match frames.next::<serde_json::Value>().await? {
            None => Ok((Call::of(&parts)?, message)),
            Some(_) => Err(ConnectError::invalid("the request has more than one message")),
        }
    };
    let (call, message) = match asked.await {
        Ok(asked) => asked,
        Err(error) => return ended(&error),
    };
    let client = Client::of(&parts.headers, call.user.as_bytes());
    let (sender, receiver) = mpsc::channel(1);
    let task = tokio::spawn(async move {
        let done = answer(call, message, Messages(sender.clone())).await.map_err(|error| client.word(error));
        // Fails when the client is gone, which then needs no answer.
        let _ = sender.send(frame::end(done.err().as_ref())).await;
    });
    let frames = stream::unfold((receiver, AbortOnDropHandle::new(task)), |(mut receiver, task)| async move {
        Some((Ok::<Bytes, Infallible>(receiver.recv().await?), (receiver, task)))
    });
    streaming(Body::from_stream(frames.fuse()))
}

/// Any number of messages in, an empty one out.
pub(super) async fn client_stream<F>(request: Request<Body>, take: impl FnOnce(Call, Incoming) -> F) -> Response
where
    F: Future<Output = Result<(), ConnectError>>,
{
    let (parts, body) = request.into_parts();
    if !is(&parts.headers, STREAM) {
        return unsupported(STREAM);
    }
    let taken = async {
        let call = Call::of(&parts)?;
        let frames = Frames::of(body, body::is_gzip(&parts.headers, STREAM_ENCODING)?);
        let within = call.timeout;
        let client = Client::of(&parts.headers, call.user.as_bytes());
        let work = take(call, Incoming(frames));
        let taken = match within {
            Some(within) => timeout(within, work).await.unwrap_or_else(|_| Err(ConnectError::deadline())),
            None => work.await,
        };
        taken.map_err(|error| client.word(error))?;
        frame::message(&serde_json::Map::new())
    };
    match taken.await {
        Ok(message) => streaming([message, frame::end(None)].concat().into()),
        Err(error) => ended(&error),
    }
}

/// The way of a server's messages to its client.
#[derive(Debug)]
pub(super) struct Messages(mpsc::Sender<Bytes>);

impl Messages {
    /// Waits until the client has taken the one before last.
    pub(super) async fn send(&self, message: &impl Serialize) -> Result<(), ConnectError> {
        let frame = frame::message(message)?;
        self.0.send(frame).await.map_err(|_| ConnectError::new(Code::Unavailable, "the client is gone"))
    }
}

/// Returns after the time in which a client expects a message, or never where it expects none.
pub(super) async fn silence(keepalive: Option<Duration>) {
    match keepalive {
        Some(keepalive) => sleep(keepalive).await,
        None => std::future::pending().await,
    }
}

/// What a client streams.
pub(super) struct Incoming(Frames);

impl Incoming {
    /// `None` when that was all.
    pub(super) async fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, ConnectError> {
        self.0.next().await
    }
}

fn is(headers: &HeaderMap, wanted: &str) -> bool {
    let stated = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    stated.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted)
}

fn unsupported(wanted: &'static str) -> Response {
    const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, [(ACCEPT_POST, HeaderValue::from_static(wanted))]).into_response()
}

fn ended(error: &ConnectError) -> Response {
    streaming(frame::end(Some(error)).into())
}

fn streaming(body: Body) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(STREAM))], body).into_response()
}
