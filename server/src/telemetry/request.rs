//! Around every request: an ID that client and log share, a line of log, a measurement.

use super::metrics::{Metrics, Plane};
use crate::traces::continue_from;
use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use std::{sync::Arc, time::Instant};
use tracing::{Instrument, field::Empty};

/// Of requests and answers.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_ID: usize = 64;

/// See the module. A client's own ID is kept where it is a plain word.
pub(crate) async fn observe(
    State((plane, metrics)): State<(Plane, Arc<Metrics>)>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let id = match request.headers().get(&REQUEST_ID) {
        Some(id) if is_plain(id) => id.clone(),
        _ => new_id(),
    };
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = request.method().clone();
    let begin = Instant::now();
    let shown = id.to_str().unwrap_or_default();
    let span = tracing::info_span!(
        "request",
        id = shown,
        plane = plane.name(),
        otel.kind = "server",
        http.request.method = %method,
        http.route = Empty,
        http.response.status_code = Empty,
    );
    continue_from(request.headers(), &span);
    let _in_flight = metrics.begin(plane);
    let mut response = next.run(request).instrument(span.clone()).await;
    // The route, not the path: whatever a client puts into a path is no name of a measurement.
    let route = response.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let (status, took) = (response.status(), begin.elapsed());
    metrics.ended(plane, status, took);
    span.record("http.route", &route).record("http.response.status_code", status.as_u16());
    // The log has the span's fields on the same line.
    span.in_scope(|| tracing::info!(ms = took.as_secs_f64() * 1e3, "answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Has a route's answer say which route it was.
pub(crate) async fn name_route(matched: Option<MatchedPath>, request: Request<Body>, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Some(matched) = matched {
        response.extensions_mut().insert(matched);
    }
    response
}

fn is_plain(id: &HeaderValue) -> bool {
    (1..=MAX_ID).contains(&id.len()) && id.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

fn new_id() -> HeaderValue {
    let random = crate::access::tokens::random::<8>().unwrap_or_default();
    HeaderValue::from_str(&hex::encode(random)).unwrap_or_else(|_| HeaderValue::from_static("0"))
}
