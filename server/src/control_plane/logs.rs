//! The logs of a sandbox: its audit log, which says what was done in it and to it.

use super::error::ApiError;
use crate::{access::keys::Key, app::SharedApp};
use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// As E2B's API has it.
const MAX_LINES: usize = 1000;

#[derive(Debug, Default, Deserialize)]
pub(super) struct LogsQuery {
    limit: Option<usize>,
    /// `forward` or `backward`, by time.
    direction: Option<String>,
}

/// `GET /v2/sandboxes/{id}/logs`.
pub(super) async fn v2(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({ "logs": entries(&app, &key, &id, &query?.0)? })))
}

/// `GET /sandboxes/{id}/logs`.
pub(super) async fn v1(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let entries = entries(&app, &key, &id, &query?.0)?;
    let lines: Vec<Value> =
        entries.iter().map(|entry| json!({ "timestamp": entry["timestamp"], "line": entry["message"] })).collect();
    Ok(Json(json!({ "logs": lines, "logEntries": entries })))
}

fn entries(app: &SharedApp, key: &Key, id: &str, query: &LogsQuery) -> Result<Vec<Value>, ApiError> {
    let entry = app.registry.find(&key.id, id)?;
    let failed = |error: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error);
    let sandbox = app.registry.manager.find(entry.id.as_str()).map_err(|error| failed(error.to_string()))?;
    let limit = query.limit.unwrap_or(MAX_LINES).min(MAX_LINES);
    let (bytes, _) = sandbox.trail().read_from(0).map_err(|error| failed(error.to_string()))?;
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let backward = query.direction.as_deref() == Some("backward");
    let entry = |line: &&[u8]| {
        let fields: Value = serde_json::from_slice(line).ok()?;
        let at = fields.get("time")?.clone();
        let event = fields.get("event")?.as_str()?.to_owned();
        let fields = fields.as_object()?.iter().map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (name.clone(), Value::String(text))
        });
        let fields: serde_json::Map<String, Value> = fields.collect();
        Some(json!({ "timestamp": at, "message": event, "level": "info", "fields": fields }))
    };
    let found = lines.iter();
    Ok(match backward {
        true => found.rev().filter_map(entry).take(limit).collect(),
        false => found.filter_map(entry).take(limit).collect(),
    })
}
