//! What is asked of single sandboxes: envd's API on its port, the sandbox's own servers on all others.
//!
//! A request says which sandbox and port it means by `E2b-Sandbox-Id` and `E2b-Sandbox-Port`, or by `{port}-{id}.` at the
//! beginning of its host. Which of both: see [`address`].

pub(crate) mod address;
pub(crate) mod envd;
mod guest_tls;
mod refusal;
mod traffic;

use crate::{
    app::SharedApp,
    registry::{entry::Reached, error::RegistryError},
};
use address::Address;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use refusal::{Refusal, Unauthorized};
use sandboxvm_protocol::identity::SandboxId;
use std::sync::Arc;
use tower::ServiceExt;

/// The port that envd's API is on; no server of the guest's is reached there.
pub(crate) const ENVD_PORT: u16 = 49983;

/// All of it.
pub(crate) fn router(app: SharedApp) -> Router {
    let envd = envd::router();
    Router::new()
        .fallback(move |State(app): State<SharedApp>, request: Request<Body>| {
            let envd = envd.clone();
            async move { dispatch(app, envd, request).await }
        })
        .with_state(app)
}

async fn dispatch(app: SharedApp, envd: Router, mut request: Request<Body>) -> Response {
    let address = match Address::of(&request) {
        Ok(Some(address)) => address,
        Ok(None) if request.uri().path() == "/health" => return StatusCode::NO_CONTENT.into_response(),
        Ok(None) => match signer(&app, envd::SignedRequest::of(&request)).await {
            Ok(id) => Address { id, port: ENVD_PORT },
            Err(refusal) => return refusal.into_response(),
        },
        Err(error) => return Refusal::Address(error).into_response(),
    };
    let id = address.id.to_string();
    let Some(_place) = app.sandbox_room.try_enter() else { return Refusal::Busy.into_response() };
    // Before anything happens to it: who has no token must not wake it, or learn that it is there.
    let Some(entry) = app.registry.entry(&address.id) else { return Refusal::NotFound(id).into_response() };
    let allowed = match address.port {
        ENVD_PORT => envd::allowed(&app, &entry, &request),
        _ => traffic::allowed(&app, &entry, &request),
    };
    if let Err(refusal) = allowed {
        return refusal.into_response();
    }
    let reached = match app.registry.reach(&address.id).await {
        Ok(reached) => reached,
        Err(RegistryError::Unknown(_)) => return Refusal::NotFound(id).into_response(),
        Err(RegistryError::Paused(_)) => return Refusal::Paused(id).into_response(),
        Err(error) => return Refusal::Registry(error).into_response(),
    };
    if address.port != ENVD_PORT {
        return traffic::forward(&app, reached, address.port, request).await;
    }
    request.extensions_mut().insert(Arc::new(reached));
    request.extensions_mut().insert(app);
    match envd.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The sandbox that a request without an address is for.
async fn signer(app: &SharedApp, signed: Option<Result<envd::SignedRequest, Refusal>>) -> Result<SandboxId, Refusal> {
    signed.ok_or(Refusal::NoAddress)??.signer(Arc::clone(app)).await
}

/// What envd's handlers are given besides the app: the sandbox that the request is for, running.
pub(crate) type SharedReached = Arc<Reached>;
