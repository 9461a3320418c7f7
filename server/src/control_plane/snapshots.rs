//! Snapshots, which clients use as templates.

use super::{admission::Caller, error::ApiError, sandboxes::paged};
use crate::{
    app::SharedApp,
    channel::request::{Operation, PageOf, SnapshotFilter},
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SnapshotBody {
    name: Option<String>,
    memory: Option<bool>,
}

/// `POST /sandboxes/{id}/snapshots`.
pub(super) async fn create(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let SnapshotBody { name, memory } = match body.is_empty() {
        true => SnapshotBody::default(),
        false => serde_json::from_slice(&body).map_err(|error| ApiError::bad(format!("invalid body: {error}")))?,
    };
    let made = caller.ask(&app, Operation::Snapshot { id, name, memory }).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListQuery {
    name: Option<String>,
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    limit: Option<usize>,
    next_token: Option<String>,
}

/// `GET /snapshots`, a page at a time, newest first.
pub(super) async fn list(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<(HeaderMap, Json<Value>), ApiError> {
    let Query(ListQuery { name, sandbox_id, limit, next_token }) = query?;
    let filter = SnapshotFilter { name, sandbox: sandbox_id, page: PageOf { limit, token: next_token } };
    Ok(paged(caller.ask(&app, Operation::Snapshots(filter)).await?))
}

/// `DELETE /templates/{id}`: a snapshot of the key's.
pub(super) async fn remove(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.ask::<()>(&app, Operation::RemoveSnapshot { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}
