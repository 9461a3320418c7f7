//! envd's API, answered by this server on behalf of the guest, which has no envd: everything is translated to the agent's
//! protocol, so a guest is never an HTTP peer of its clients here.

use super::{Refusal, address::text};
use crate::{access::tokens::Scope, app::App, registry::entry::Entry};
use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    routing::get,
};

/// What clients are told of one sandbox's processes and directories beyond what its agent knows; gone with the server.
#[derive(Debug, Default)]
pub(crate) struct SandboxState {}

/// Whether a request may reach envd: it has the sandbox's token, or none is wanted.
pub(super) fn allowed(app: &App, entry: &Entry, request: &Request<Body>) -> Result<(), Refusal> {
    if !entry.record().secure || request.uri().path() == "/health" {
        return Ok(());
    }
    let token = text(request.headers(), "x-access-token").unwrap_or_default();
    match app.access.tokens.opens(Scope::Envd, &entry.id, token.as_bytes()) {
        true => Ok(()),
        false => Err(Refusal::Unauthorized("this sandbox wants its token in X-Access-Token")),
    }
}

/// All of it; every request has a `SharedReached` and a `SharedApp` among its extensions.
pub(super) fn router() -> Router {
    Router::new().route("/health", get(|| async { StatusCode::NO_CONTENT }))
}
