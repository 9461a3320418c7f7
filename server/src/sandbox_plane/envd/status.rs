//! Status of a sandbox: health, metrics, and the environment of its processes.

use super::{connect::ConnectError, state::SharedTarget};
use crate::{app::SharedApp, channel::request::Request, metering::samples::Sample};
use axum::{
    Json, Router,
    extract::Extension,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Map, Value, json};
use std::time::UNIX_EPOCH;

const MIB: u64 = 1 << 20;

pub(super) fn router() -> Router {
    Router::new()
        .route("/health", get(|| async { StatusCode::NO_CONTENT }))
        .route("/metrics", get(metrics))
        .route("/envs", get(envs))
}

/// What the host sees of it, as of the last sample.
async fn metrics(
    Extension(app): Extension<SharedApp>,
    Extension(target): Extension<SharedTarget>,
) -> Result<Response, ConnectError> {
    let sample: Option<Sample> = app.launcher.ask(Request::Sample { handle: target.handle() }).await?;
    let Some(sample) = sample else {
        let body = Json(json!({ "code": 503, "message": "no sample was taken yet; try again in ten seconds" }));
        return Ok((StatusCode::SERVICE_UNAVAILABLE, body).into_response());
    };
    Ok(Json(json!({
        "ts": sample.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "cpu_count": sample.cpus,
        "cpu_used_pct": sample.cpu_percent,
        "mem_total": sample.memory_total,
        "mem_used": sample.memory,
        "mem_total_mib": sample.memory_total / MIB,
        "mem_used_mib": sample.memory / MIB,
        "disk_total": sample.disk_total,
        "disk_used": sample.disk,
    }))
    .into_response())
}

/// What its processes are given besides what each is started with.
async fn envs(
    Extension(app): Extension<SharedApp>,
    Extension(target): Extension<SharedTarget>,
) -> Result<Json<Map<String, Value>>, ConnectError> {
    let env: Vec<String> = app.launcher.ask(Request::Environment { handle: target.handle() }).await?;
    let pairs = env.iter().filter_map(|entry| entry.split_once('='));
    Ok(Json(pairs.map(|(key, value)| (key.to_owned(), value.into())).collect()))
}
