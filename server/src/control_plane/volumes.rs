//! Requests about volumes: create, list, show and remove. Decides nothing: the launcher does.

use super::{admission::Caller, error::ApiError};
use crate::{app::SharedApp, channel::request::Operation};
use axum::{
    Extension, Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::Value;

/// Body of create.
#[derive(Debug, Deserialize)]
pub(super) struct NewVolume {
    name: String,
}

/// `POST /volumes`.
pub(super) async fn create(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<NewVolume>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Json(NewVolume { name }) = body?;
    Ok((StatusCode::CREATED, Json(caller.ask(&app, Operation::CreateVolume { name }).await?)))
}

/// `GET /volumes`.
pub(super) async fn list(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(caller.ask(&app, Operation::Volumes).await?))
}

/// `GET /volumes/{id}`, with the token of the volume.
pub(super) async fn show(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(caller.ask(&app, Operation::ShowVolume { id }).await?))
}

/// `DELETE /volumes/{id}`.
pub(super) async fn remove(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.ask::<()>(&app, Operation::RemoveVolume { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}
