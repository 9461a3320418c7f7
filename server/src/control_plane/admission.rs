//! Who comes in: a valid key, within its rate, with a request that has arrived as a whole, while the key has a place.

use super::error::ApiError;
use crate::{
    access::{keys::Key, rate::Credential},
    app::{App, SharedApp},
    deadline::{self, Deadlines},
    listen::connections::Peer,
    room::NoPlace,
};
use axum::{
    body::{Body, Bytes, HttpBody},
    extract::State,
    http::{Method, Request, StatusCode},
    middleware::Next,
    response::Response,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::time::{Duration, Instant, SystemTime};

/// Longest a key could be.
const MAX_KEY: usize = 256;
/// A request's body: metadata and environment, at most.
const MAX_BODY: usize = 1 << 20;

/// Lets a request in, with its [`Key`] among its extensions.
pub(super) async fn admit(
    State(app): State<SharedApp>,
    mut request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    let key = key(&app, &request)?;
    let rate = key.limits.requests_per_second.unwrap_or(app.config.requests_per_second);
    app.access
        .rates
        .take(&key.account, rate, Instant::now())
        .map_err(|wait| ApiError::later(format!("this API key is limited to {rate} requests per second"), wait))?;
    let looks_only = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if key.limits.read_only && !looks_only {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "this API key is read-only"));
    }
    let body = whole(&app, &key, std::mem::take(request.body_mut())).await?;
    *request.body_mut() = Body::from(body);
    let _place = app.rooms.control.try_enter(&key.account, None).map_err(busy)?;
    request.extensions_mut().insert(key);
    Ok(next.run(request).await)
}

/// Reads the body before the request takes its place among those that are worked on.
async fn whole(app: &App, key: &Key, body: Body) -> Result<Bytes, ApiError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let _place = app.rooms.reading.try_enter(&key.account, None).map_err(busy)?;
    let within = Duration::from_secs(app.config.body_timeout);
    let deadlines = Deadlines { pause: within, body: Some(within), answer: Duration::MAX };
    match Limited::new(deadline::body(body, deadlines), MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request is over the cap of {MAX_BODY} bytes"),
        )),
        Err(error) if deadline::is_late(&*error) => {
            let message = format!("the request did not arrive within {} s", within.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
        Err(error) => Err(ApiError::bad(format!("the request was interrupted: {error}"))),
    }
}

fn busy(full: NoPlace) -> ApiError {
    ApiError::later(full.to_string(), Duration::from_secs(1))
}

fn key(app: &App, request: &Request<Body>) -> Result<Key, ApiError> {
    let unauthorized = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, message);
    let given = request.headers().get("x-api-key").ok_or_else(|| unauthorized("send an API key in X-API-KEY"))?;
    let found = match given.len() {
        0..=MAX_KEY => app.access.keys.check(given.as_bytes(), SystemTime::now()),
        _ => Ok(None),
    };
    match found {
        Ok(Some(key)) => Ok(key),
        Ok(None) => match app.access.failures.note(Credential::Key, request.extensions().get::<Peer>(), Instant::now())
        {
            Ok(()) => Err(unauthorized("the API key is not valid")),
            Err(wait) => Err(ApiError::later("this address sent too many invalid API keys", wait)),
        },
        Err(error) => {
            tracing::error!(%error, "cannot check API keys");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "cannot check API keys; see the log of the server"))
        }
    }
}
