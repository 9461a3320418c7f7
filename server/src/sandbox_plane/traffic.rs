//! Requests to servers in a sandbox: forwarded to a port of its loopback, answers and WebSockets included.

use super::{Refusal, address::text};
use crate::{
    access::tokens::Scope,
    app::App,
    registry::entry::{Entry, Reached},
};
use axum::{
    body::Body,
    http::Request,
    response::{IntoResponse, Response},
};

/// Whether a request may reach the sandbox's own ports.
pub(super) fn allowed(app: &App, entry: &Entry, request: &Request<Body>) -> Result<(), Refusal> {
    if entry.record().public_traffic {
        return Ok(());
    }
    let token = text(request.headers(), "e2b-traffic-access-token").unwrap_or_default();
    match app.access.tokens.opens(Scope::Traffic, &entry.id, token.as_bytes()) {
        true => Ok(()),
        false => Err(Refusal::Unauthorized("this sandbox's ports want its token in E2b-Traffic-Access-Token")),
    }
}

/// Forwards it.
pub(super) async fn forward(reached: Reached, port: u16, _request: Request<Body>) -> Response {
    Refusal::PortClosed { id: reached.entry.id.to_string(), port }.into_response()
}
