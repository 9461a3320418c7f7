//! Who comes in: a valid key, within its rate, while the server has room. Before anything of the request is read.

use super::error::ApiError;
use crate::{access::keys::Key, app::SharedApp};
use axum::{
    body::Body,
    extract::State,
    http::{Method, Request, StatusCode},
    middleware::Next,
    response::Response,
};
use std::time::{Duration, Instant};

/// Longest a key could be.
const MAX_KEY: usize = 256;

/// Lets a request in, with its [`Key`] among its extensions.
pub(super) async fn admit(
    State(app): State<SharedApp>,
    mut request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    let Some(_place) = app.room.try_enter() else {
        return Err(ApiError::later(
            "the server has as many requests as it works on at a time",
            Duration::from_secs(1),
        ));
    };
    let key = key(&app, &request)?;
    let rate = key.limits.requests_per_second.unwrap_or(app.config.requests_per_second);
    app.access
        .rates
        .take(&key.id, rate, Instant::now())
        .map_err(|wait| ApiError::later(format!("this API key has {rate} requests a second"), wait))?;
    let looks_only = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if key.limits.read_only && !looks_only {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "this API key may only look"));
    }
    request.extensions_mut().insert(key);
    Ok(next.run(request).await)
}

fn key(app: &SharedApp, request: &Request<Body>) -> Result<Key, ApiError> {
    let unauthorized = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, message);
    let given = request.headers().get("x-api-key").ok_or_else(|| unauthorized("send an API key in X-API-KEY"))?;
    if given.len() > MAX_KEY {
        return Err(unauthorized("the API key is not valid"));
    }
    match app.access.keys.check(given.as_bytes()) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err(unauthorized("the API key is not valid")),
        Err(error) => {
            tracing::error!(%error, "keys cannot be checked");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "keys cannot be checked; the server's log says why"))
        }
    }
}
