//! What sandboxes can be made from: the configured templates, and the key's snapshots.

use super::{admission::Caller, error::ApiError};
use crate::{app::SharedApp, channel::request::Operation};
use axum::{
    Extension, Json,
    extract::{Path, State},
};
use serde_json::Value;

/// `GET /templates`.
pub(super) async fn list(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(caller.ask(&app, Operation::Templates).await?))
}

/// `GET /templates/aliases/{alias}`.
pub(super) async fn alias(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(alias): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(caller.ask(&app, Operation::Alias { alias }).await?))
}
