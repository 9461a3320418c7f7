//! envd's API, answered by this server on behalf of the guest, which has no envd: everything is translated to the agent's
//! protocol, so a guest is never an HTTP peer of its clients here.
//!
//! ```text
//! process.Process/*        connect ──> process ─────> manager: exec, attach, signal
//! filesystem.Filesystem/*  connect ──> filesystem ──> manager: files, watch
//! /files                               files ───────> manager: read, write
//! /health, /metrics, /envs             status
//! ```

mod connect;
mod failure;
mod files;
mod filesystem;
mod homes;
mod paths;
mod process;
pub(super) mod state;
mod status;

use super::{
    address::Address,
    refusal::{Refusal, Unauthorized},
};
use crate::{
    access::{rate::Credential, signature::Claim},
    app::App,
    channel::request::{Denied, Request as Asked, Signer},
    listen::connections::Peer,
};
use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
    response::IntoResponse,
};
use connect::{Code, ConnectError};
use sandboxvm_manager::SandboxId;
use std::time::Instant;

/// The header that has a sandbox's token.
pub(super) const ACCESS_TOKEN: &str = "x-access-token";

pub(super) fn is_about_a_file(request: &Request<Body>) -> bool {
    request.uri().path() == files::ROUTE
}

/// What a request about a file without a token says that it may do.
pub(super) fn claim(request: &Request<Body>) -> Result<Claim, Refusal> {
    let query = files::Query::of(request.uri()).map_err(|_| Refusal::Malformed)?;
    files::claim(request.method(), &query).map_err(Refusal::Unauthorized)
}

/// The answer to a request that may not reach a sandbox.
pub(super) fn refusal(app: &App, address: &Address, request: &Request<Body>, denied: Denied) -> Refusal {
    let no_traffic = |problem| Refusal::NoTrafficToken { id: address.id.to_string(), problem };
    match denied {
        Denied::NoToken => Refusal::Unauthorized(Unauthorized::Token),
        Denied::WrongToken => failed(app, request, Unauthorized::Token),
        Denied::WrongFileToken => failed(app, request, Unauthorized::FileToken),
        Denied::NoClaim => match claim(request) {
            Err(Refusal::Unauthorized(problem)) => failed(app, request, problem),
            Err(refusal) => refusal,
            Ok(_) => Refusal::Unauthorized(Unauthorized::NoSignature),
        },
        Denied::WrongSignature => failed(app, request, Unauthorized::Signature),
        Denied::Expired => failed(app, request, Unauthorized::Expired),
        Denied::NoTrafficToken => no_traffic(
            "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing",
        ),
        Denied::WrongTrafficToken => no_traffic(
            "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid",
        ),
    }
}

/// The answer to what did not match, which counts for the client's address.
pub(super) fn failed(app: &App, request: &Request<Body>, problem: Unauthorized) -> Refusal {
    let credential = match problem {
        Unauthorized::Signature => Credential::Signature,
        Unauthorized::Token | Unauthorized::FileToken => Credential::Token,
        Unauthorized::NoSignature | Unauthorized::Expired => return Refusal::Unauthorized(problem),
    };
    match app.pace.failures.note(credential, request.extensions().get::<Peer>(), Instant::now()) {
        Ok(()) => Refusal::Unauthorized(problem),
        Err(wait) => Refusal::Slowed(wait),
    }
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
    pub(super) async fn signer(self, app: &App) -> Result<SandboxId, Refusal> {
        let claim = files::claim(&self.method, &self.query).map_err(Refusal::Unauthorized)?;
        match app.launcher.ask(Asked::FindSigner(claim)).await {
            Ok(Signer::Found(id)) => Ok(id),
            Ok(Signer::Denied(Denied::Expired)) => Err(Refusal::Unauthorized(Unauthorized::Expired)),
            Ok(Signer::Denied(_)) => Err(Refusal::Unauthorized(Unauthorized::Signature)),
            Err(failure) => Err(Refusal::Launcher(failure)),
        }
    }
}

/// All of it; every request has a [`state::SharedTarget`] and a `SharedApp` among its extensions.
pub(super) fn router() -> Router {
    Router::new()
        .merge(status::router())
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
