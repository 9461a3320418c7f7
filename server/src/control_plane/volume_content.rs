//! Files of volumes: the token of a volume carries the right, without an API key. The launcher gives a connection to a
//! process that serves this one request; bodies pass here in both directions as they arrive. That process has read what
//! sandboxes wrote: its answers are bounded, and its bytes are passed on without a look at them.

use super::error::ApiError;
use crate::{
    access::{keys::KeyId, rate::Credential},
    app::SharedApp,
    channel::{
        failure::{Failure, Why},
        request::{ContentClaim, Request as ToLauncher},
    },
    deadline::{self, Deadlines},
    listen::connections::Peer,
};
use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use sandboxvm_manager::volume_content::{self, Answer, MAX_FRAME, MAX_PIECE, SetOwner};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    io, mem,
    os::unix::net::UnixStream as StdUnixStream,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc::{self, Sender},
};

/// Maximum size of a body that is JSON.
const MAX_JSON: usize = 64 << 10;
/// Maximum time of an upload: it takes one of the places for requests about files.
const UPLOAD: Duration = Duration::from_secs(60 * 60);
/// Size in bytes of a piece of an answer.
const PIECE: usize = 64 << 10;

/// What all these requests say in their query.
#[derive(Debug, Default, Deserialize)]
struct Query {
    path: String,
    depth: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
    #[serde(default)]
    force: bool,
}

impl Query {
    fn owner(&self) -> SetOwner {
        SetOwner { uid: self.uid, gid: self.gid, mode: self.mode }
    }
}

/// A request about the files of a volume.
pub(super) struct Asked {
    /// The ID of the volume.
    id: String,
    query: Query,
    headers: HeaderMap,
    peer: Option<Peer>,
    body: Body,
}

impl FromRequest<SharedApp> for Asked {
    type Rejection = Response;

    async fn from_request(request: Request, app: &SharedApp) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let Path(id) = Path::from_request_parts(&mut parts, app).await.map_err(IntoResponse::into_response)?;
        let query = serde_urlencoded::from_str(parts.uri.query().unwrap_or_default());
        let query = query.map_err(|error| ApiError::bad(format!("invalid query: {error}")).into_response())?;
        let peer = parts.extensions.get::<Peer>().copied();
        Ok(Self { id, query, headers: parts.headers, peer, body })
    }
}

/// A connection to the process that serves a request.
struct Connection {
    owner: KeyId,
    socket: UnixStream,
}

/// Asks the launcher for a process that serves a request.
async fn begin(
    app: &SharedApp,
    id: String,
    (headers, peer): (&HeaderMap, Option<Peer>),
    request: volume_content::Request,
) -> Result<Connection, ApiError> {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(token) = token else {
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "send the token of the volume in Authorization"));
    };
    let claim = ContentClaim { id, token: token.to_owned(), request };
    let asked = app.launcher.ask_with(ToLauncher::Content(Box::new(claim)), Vec::new()).await;
    let mut reply = match asked {
        Err(failure @ Failure { why: Why::Unauthorized, .. }) => {
            return Err(match app.pace.failures.note(Credential::Token, peer.as_ref(), Instant::now()) {
                Ok(()) => failure.into(),
                Err(wait) => ApiError::later("this address sent too many invalid tokens", wait),
            });
        }
        asked => asked?,
    };
    let owner = serde_json::from_slice(&reply.head).map_err(|error| failed(&error))?;
    let socket = reply.descriptors.pop().ok_or_else(|| failed(&"the launcher gave no socket"))?;
    let socket = UnixStream::from_std(StdUnixStream::from(socket)).map_err(|error| failed(&error))?;
    Ok(Connection { owner, socket })
}

fn failed(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the volume does not answer: {error}"))
}

async fn answer(socket: &mut UnixStream) -> Result<Answer, ApiError> {
    let length = socket.read_u32_le().await.map_err(|error| failed(&error))?;
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_FRAME);
    let mut json = vec![0; length.ok_or_else(|| failed(&"its answer is too long"))?];
    socket.read_exact(&mut json).await.map_err(|error| failed(&error))?;
    serde_json::from_slice(&json).map_err(|error| failed(&error))
}

impl From<volume_content::Failure> for ApiError {
    fn from(failure: volume_content::Failure) -> Self {
        use volume_content::Why as W;
        let status = match failure.why {
            W::NotFound => StatusCode::NOT_FOUND,
            W::Exists => StatusCode::CONFLICT,
            W::Invalid => StatusCode::BAD_REQUEST,
            W::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            W::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, failure.message)
    }
}

impl Connection {
    /// Passes the answer on, with this status if the request was carried out.
    async fn respond(mut self, app: &SharedApp, status: StatusCode) -> Result<Response, ApiError> {
        let within = Duration::from_secs(app.config.answer_timeout);
        let answered = tokio::time::timeout(within, answer(&mut self.socket)).await;
        let (length, kind) = match answered.map_err(|error| failed(&error))?? {
            Answer::Failed(failure) => return Err(failure.into()),
            Answer::Done => return Ok(StatusCode::NO_CONTENT.into_response()),
            Answer::Json { length } => (length, "application/json"),
            Answer::Content { length } => (length, "application/octet-stream"),
        };
        let place = app.limits.streams.try_enter(&self.owner, None);
        let place = place.map_err(|full| ApiError::later(full.to_string(), Duration::from_secs(1)))?;
        let (sender, receiver) = mpsc::channel(1);
        let pause = Duration::from_secs(app.config.body_timeout);
        tokio::spawn(async move {
            pass_on(self.socket, length, pause, &sender).await;
            drop(place);
        });
        let pieces = stream::unfold(receiver, |mut receiver| async move {
            let piece: io::Result<Bytes> = receiver.recv().await?;
            Some((piece, receiver))
        });
        let mut response = Response::new(Body::from_stream(pieces));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        // Never shown by a browser as a page of this server: sandboxes write it.
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        Ok(response)
    }

    /// Sends a body in pieces, as far as the process reads it.
    async fn send(&mut self, app: &SharedApp, body: Body) -> Result<(), ApiError> {
        let place = app.limits.streams.try_enter(&self.owner, None);
        let _place = place.map_err(|full| ApiError::later(full.to_string(), Duration::from_secs(1)))?;
        let pause = Duration::from_secs(app.config.body_timeout);
        let mut body =
            deadline::body(body, Deadlines { pause, body: Some(UPLOAD), answer: Duration::MAX }).into_data_stream();
        while let Some(piece) = body.next().await {
            // Without an empty piece at the end, nothing is kept.
            let piece = piece.map_err(|error| ApiError::bad(format!("the upload was interrupted: {error}")))?;
            for piece in piece.chunks(MAX_PIECE).filter(|piece| !piece.is_empty()) {
                let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                if self.socket.write_u32_le(length).await.is_err() || self.socket.write_all(piece).await.is_err() {
                    // It has answered already: it refuses the rest.
                    return Ok(());
                }
            }
        }
        let _ = self.socket.write_u32_le(0).await;
        Ok(())
    }
}

/// Passes the bytes that a process sends on to a client. A client that takes none for as long as `pause` ends it, and with
/// it the process: the body of its answer is shorter than it was to be.
async fn pass_on(mut socket: impl AsyncRead + Unpin, length: u64, pause: Duration, to: &Sender<io::Result<Bytes>>) {
    let mut left = length;
    while left > 0 {
        let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
        // Also where the client goes away while the process reads.
        let read = tokio::select! {
            read = socket.read(&mut piece) => read,
            () = to.closed() => return,
        };
        let read = match read {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            read => read,
        };
        let (piece, is_last) = match read {
            Ok(count) => {
                piece.truncate(count);
                left -= count as u64;
                (Ok(Bytes::from(piece)), false)
            }
            Err(error) => (Err(error), true),
        };
        if to.send_timeout(piece, pause).await.is_err() || is_last {
            return;
        }
    }
}

impl Asked {
    /// Begins the request that `to_process` makes of the query.
    async fn begin(
        &mut self,
        app: &SharedApp,
        to_process: impl FnOnce(Query) -> volume_content::Request,
    ) -> Result<Connection, ApiError> {
        let (id, query) = (mem::take(&mut self.id), mem::take(&mut self.query));
        begin(app, id, (&self.headers, self.peer), to_process(query)).await
    }

    /// Serves a request, without its body.
    async fn serve(
        mut self,
        app: &SharedApp,
        status: StatusCode,
        to_process: impl FnOnce(Query) -> volume_content::Request,
    ) -> Result<Response, ApiError> {
        self.begin(app, to_process).await?.respond(app, status).await
    }
}

/// `GET /volumecontent/{id}/path`.
pub(super) async fn describe(State(app): State<SharedApp>, asked: Asked) -> Result<Response, ApiError> {
    asked.serve(&app, StatusCode::OK, |query| volume_content::Request::Describe { path: query.path }).await
}

/// `DELETE /volumecontent/{id}/path`.
pub(super) async fn remove(State(app): State<SharedApp>, asked: Asked) -> Result<Response, ApiError> {
    asked.serve(&app, StatusCode::NO_CONTENT, |query| volume_content::Request::Remove { path: query.path }).await
}

/// `PATCH /volumecontent/{id}/path`.
pub(super) async fn set_owner(State(app): State<SharedApp>, mut asked: Asked) -> Result<Response, ApiError> {
    let owner: SetOwner = json(&app, mem::take(&mut asked.body)).await?;
    asked.serve(&app, StatusCode::OK, |query| volume_content::Request::SetOwner { path: query.path, owner }).await
}

/// `GET /volumecontent/{id}/dir`.
pub(super) async fn list(State(app): State<SharedApp>, asked: Asked) -> Result<Response, ApiError> {
    let list = |Query { path, depth, .. }| volume_content::Request::List { path, depth: depth.unwrap_or(1) };
    asked.serve(&app, StatusCode::OK, list).await
}

/// `POST /volumecontent/{id}/dir`.
pub(super) async fn make_directory(State(app): State<SharedApp>, asked: Asked) -> Result<Response, ApiError> {
    let make = |query: Query| volume_content::Request::MakeDirectory {
        owner: query.owner(),
        force: query.force,
        path: query.path,
    };
    asked.serve(&app, StatusCode::CREATED, make).await
}

/// `GET /volumecontent/{id}/file`.
pub(super) async fn read(State(app): State<SharedApp>, asked: Asked) -> Result<Response, ApiError> {
    asked.serve(&app, StatusCode::OK, |query| volume_content::Request::Read { path: query.path }).await
}

/// `PUT /volumecontent/{id}/file`.
pub(super) async fn write(State(app): State<SharedApp>, mut asked: Asked) -> Result<Response, ApiError> {
    let write =
        |query: Query| volume_content::Request::Write { owner: query.owner(), force: query.force, path: query.path };
    let mut connection = asked.begin(&app, write).await?;
    connection.send(&app, asked.body).await?;
    connection.respond(&app, StatusCode::CREATED).await
}

async fn json<T: DeserializeOwned>(app: &SharedApp, body: Body) -> Result<T, ApiError> {
    let within = Duration::from_secs(app.config.body_timeout);
    let deadlines = Deadlines { pause: within, body: Some(within), answer: Duration::MAX };
    let collected = Limited::new(deadline::body(body, deadlines), MAX_JSON).collect().await;
    let bytes = collected.map_err(|error| ApiError::bad(format!("cannot read the body: {error}")))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| ApiError::bad(format!("invalid body: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_ends_the_process() {
        let (mut process, socket) = tokio::io::duplex(4 * PIECE);
        let (sender, mut receiver) = mpsc::channel(1);
        process.write_all(&[1; 4 * PIECE]).await.unwrap();
        // The first piece waits in the channel, and the second one for its place.
        pass_on(socket, 8 * PIECE as u64, Duration::from_secs(30), &sender).await;
        assert_eq!(receiver.recv().await.unwrap().unwrap().len(), PIECE);
        // Its connection is closed.
        assert!(process.write_all(b"more").await.is_err());
    }
}
