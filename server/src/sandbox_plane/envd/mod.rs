//! envd's API, answered by this server on behalf of the guest, which has no envd: everything is translated to the agent's
//! protocol, so a guest is never an HTTP peer of its clients here.
//!
//! ```text
//! process.Process/*        connect ──> process ─────> manager: exec, attach, signal
//! filesystem.Filesystem/*  connect ──> filesystem ──> manager: files, watch
//! /files                               files ───────> manager: read, write
//! /health, /metrics, /envs             about
//! ```

mod about;
mod connect;
mod failure;
mod files;
mod filesystem;
mod paths;
mod process;

use super::{Refusal, Unauthorized, address::text};
use crate::{
    access::{rate::Credential, tokens::Scope},
    app::{App, SharedApp},
    listen::connections::Peer,
    registry::entry::Entry,
};
use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
    response::{IntoResponse, Response},
};
use connect::{Code, ConnectError};
use sandboxvm_protocol::identity::SandboxId;
use std::time::Instant;

/// The header that has a sandbox's token.
const ACCESS_TOKEN: &str = "x-access-token";

/// What clients are told of one sandbox's processes and directories beyond what its agent knows; gone with the server.
#[derive(Debug, Default)]
pub(crate) struct SandboxState {
    processes: process::Processes,
    watchers: filesystem::Watchers,
    homes: paths::Homes,
}

/// Whether a request may reach envd: it has the sandbox's token, or the signature for a file, or none is wanted.
///
/// Except for sandboxes that want none, the answer depends on the request and the ID in it alone, not on whether there is
/// such a sandbox (`entry`): a client without its token cannot find out.
pub(super) fn allowed(
    app: &App,
    id: &SandboxId,
    entry: Option<&Entry>,
    request: &Request<Body>,
) -> Result<(), Refusal> {
    if entry.is_some_and(|entry| !entry.record().secure) {
        return Ok(());
    }
    let is_file = request.uri().path() == files::ROUTE;
    if request.headers().contains_key(ACCESS_TOKEN) {
        let problem = if is_file { Unauthorized::FileToken } else { Unauthorized::Token };
        return has_token(app, id, entry, request, problem);
    }
    if !is_file {
        return Err(Refusal::Unauthorized(Unauthorized::Token));
    }
    let query = files::Query::of(request.uri()).map_err(|_| Refusal::Malformed)?;
    files::check(app, id, generation(entry), request.method(), &query).map_err(|problem| failed(app, request, problem))
}

/// Whether a request has the sandbox's token.
pub(super) fn has_token(
    app: &App,
    id: &SandboxId,
    entry: Option<&Entry>,
    request: &Request<Body>,
    problem: Unauthorized,
) -> Result<(), Refusal> {
    let Some(token) = text(request.headers(), ACCESS_TOKEN) else { return Err(Refusal::Unauthorized(problem)) };
    match app.access.tokens.opens(Scope::Envd, id, generation(entry), token.as_bytes()) {
        true => Ok(()),
        false => Err(failed(app, request, problem)),
    }
}

/// Which of the sandbox's tokens counts, where it is there.
fn generation(entry: Option<&Entry>) -> Option<u32> {
    entry.map(Entry::token_generation)
}

/// The answer to what did not match, which counts for the client's address.
pub(super) fn failed(app: &App, request: &Request<Body>, problem: Unauthorized) -> Refusal {
    let credential = match problem {
        Unauthorized::Signature => Credential::Signature,
        Unauthorized::Token | Unauthorized::FileToken => Credential::Token,
        Unauthorized::NoSignature | Unauthorized::Expired => return Refusal::Unauthorized(problem),
    };
    match app.access.failures.note(credential, request.extensions().get::<Peer>(), Instant::now()) {
        Ok(()) => Refusal::Unauthorized(problem),
        Err(wait) => Refusal::Slowed(wait),
    }
}

/// What a client without the sandbox's token is told of its health: whether it runs. It is not woken.
pub(super) fn health(app: &App, id: &SandboxId, entry: Option<&Entry>) -> Response {
    let runs = entry.is_some_and(|entry| {
        let sandbox = app.registry.manager.find(entry.id.as_str());
        !entry.record().is_paused() && sandbox.is_ok_and(|sandbox| sandbox.state().is_ok_and(|state| state.is_live()))
    });
    if runs { StatusCode::NO_CONTENT.into_response() } else { Refusal::NotFound(id.to_string()).into_response() }
}

/// A request that does not say which sandbox it is for, but is signed for one of its files.
pub(super) struct SignedRequest {
    method: Method,
    query: files::Query,
}

impl SignedRequest {
    /// Nothing for any other request.
    pub(super) fn of(request: &Request<Body>) -> Option<Result<Self, Refusal>> {
        if request.uri().path() != files::ROUTE || request.headers().contains_key(ACCESS_TOKEN) {
            return None;
        }
        match files::Query::of(request.uri()) {
            Ok(query) if query.signature.is_some() => Some(Ok(Self { method: request.method().clone(), query })),
            Ok(_) => None,
            Err(_) => Some(Err(Refusal::Malformed)),
        }
    }

    /// The sandbox whose token it was signed with.
    pub(super) async fn signer(self, app: SharedApp) -> Result<SandboxId, Refusal> {
        files::signer(app, self.method, self.query).await.map_err(Refusal::Unauthorized)
    }
}

/// All of it; every request has a `SharedReached` and a `SharedApp` among its extensions.
pub(super) fn router() -> Router {
    Router::new()
        .merge(about::router())
        .merge(process::router())
        .merge(filesystem::router())
        .merge(files::router())
        .fallback(|request: Request<Body>| async move {
            let message = format!("{} is not served here; docs/e2b.md lists the calls that are", request.uri().path());
            let mut response = ConnectError::new(Code::Unimplemented, message).into_response();
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        })
}
