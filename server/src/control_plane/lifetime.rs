//! Prolonging, pausing, resuming and forking.

use super::{admission::Caller, error::ApiError};
use crate::{
    app::SharedApp,
    channel::{
        failure::{Failure, Why},
        request::{Operation, Resumed},
    },
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Of the API, where a client states none.
const FORK_TIMEOUT: u64 = 15;
const CONNECT_TIMEOUT: u64 = 300;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ConnectBody {
    timeout: Option<u64>,
    memory: Option<bool>,
}

/// A body that need not be there.
fn optional<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, ApiError> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| ApiError::bad(format!("invalid body: {error}")))
}

/// `POST /sandboxes/{id}/connect`: 200 when it runs, 201 when it was resumed.
pub(super) async fn connect(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let ConnectBody { timeout, memory } = optional(&body)?;
    let timeout = timeout.unwrap_or(CONNECT_TIMEOUT);
    let connected: Resumed = caller.ask(&app, Operation::Connect { id, timeout, memory }).await?;
    let status = if connected.was_paused { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(connected.sandbox)))
}

/// `POST /sandboxes/{id}/resume`, of older clients: 409 when it runs.
pub(super) async fn resume(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let ConnectBody { timeout, memory } = optional(&body)?;
    let timeout = timeout.unwrap_or(CONNECT_TIMEOUT);
    let resumed: Resumed = caller.ask(&app, Operation::Resume { id: id.clone(), timeout, memory }).await?;
    if !resumed.was_paused {
        return Err(ApiError::new(StatusCode::CONFLICT, format!("sandbox {id} is already running")));
    }
    Ok((StatusCode::CREATED, Json(resumed.sandbox)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PauseBody {
    memory: Option<bool>,
    require_healthy_guest: bool,
}

/// `POST /sandboxes/{id}/pause`.
pub(super) async fn pause(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let PauseBody { memory, require_healthy_guest: healthy } = optional(&body)?;
    caller.ask::<()>(&app, Operation::Pause { id, memory, healthy }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(super) struct TimeoutBody {
    timeout: u64,
}

/// `POST /sandboxes/{id}/timeout`.
pub(super) async fn set_timeout(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Result<Json<TimeoutBody>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(TimeoutBody { timeout }) = body?;
    caller.ask::<()>(&app, Operation::SetTimeout { id, timeout }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RefreshBody {
    duration: Option<u64>,
}

/// `POST /sandboxes/{id}/refreshes`: more time, never less.
pub(super) async fn refresh(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let body: RefreshBody = optional(&body)?;
    let timeout = body.duration.unwrap_or(CONNECT_TIMEOUT);
    caller.ask::<()>(&app, Operation::Extend { id, timeout }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ForkBody {
    timeout: Option<u64>,
    count: Option<u32>,
}

/// One copy, or why there is none.
#[derive(Debug, Serialize)]
pub(super) struct ForkResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

/// `POST /sandboxes/{id}/fork`: all copies, or an error for each.
pub(super) async fn fork(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Vec<ForkResult>>), ApiError> {
    let body: ForkBody = optional(&body)?;
    let (count, timeout) = (body.count.unwrap_or(1), body.timeout.unwrap_or(FORK_TIMEOUT));
    let forked: Result<Vec<Value>, Failure> = caller.try_ask(&app, Operation::Fork { id, count, timeout }).await;
    let results = match forked {
        Ok(copies) => copies.into_iter().map(|copy| ForkResult { sandbox: Some(copy), error: None }).collect(),
        // Of the request or the sandbox that was to be forked, not of a copy.
        Err(
            failure @ Failure {
                why: Why::NotFound | Why::Paused | Why::Quota | Why::Invalid | Why::Unauthorized | Why::Forbidden,
                ..
            },
        ) => return Err(failure.into()),
        Err(failure) => {
            let error = ApiError::from(failure);
            let failed = || json!({ "code": error.status.as_u16(), "message": error.message });
            (0..count).map(|_| ForkResult { sandbox: None, error: Some(failed()) }).collect()
        }
    };
    Ok((StatusCode::CREATED, Json(results)))
}
