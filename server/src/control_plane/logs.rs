//! The logs of a sandbox, as two versions of the API have them.

use super::{admission::Caller, error::ApiError};
use crate::{
    app::SharedApp,
    channel::request::{LogsQuery, Operation},
};
use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use sandboxvm_manager::SandboxId;
use serde_json::{Value, json};
use std::time::Duration;

/// `GET /v2/sandboxes/{id}/logs`.
pub(super) async fn v2(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({ "logs": entries(&app, &caller, id, query?.0).await? })))
}

/// `GET /sandboxes/{id}/logs`.
pub(super) async fn v1(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let entries = entries(&app, &caller, id, query?.0).await?;
    let lines: Vec<Value> =
        entries.iter().map(|entry| json!({ "timestamp": entry["timestamp"], "line": entry["message"] })).collect();
    Ok(Json(json!({ "logs": lines, "logEntries": entries })))
}

async fn entries(app: &SharedApp, caller: &Caller, id: String, query: LogsQuery) -> Result<Vec<Value>, ApiError> {
    caller.ask::<()>(app, Operation::Find { id: id.clone() }).await?;
    let sandbox = SandboxId::try_from(id.clone()).ok();
    let place =
        app.limits.logs.try_enter(&caller.key.id, sandbox.as_ref()).map_err(|_| {
            ApiError::later("the server is reading too many logs at the same time", Duration::from_secs(1))
        })?;
    let (app, caller) = (app.clone(), caller.clone());
    // To its end even when the client has gone away: the place is that of the work, which the launcher completes.
    let read = tokio::spawn(async move {
        let _place = place;
        caller.ask(&app, Operation::Logs { id, query }).await
    });
    read.await.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
}
