//! Prolonging, pausing, resuming and forking.

use super::{
    error::ApiError,
    sandboxes::{Network, timeout, unbroken},
    views::{self, Created},
};
use crate::{
    access::keys::Key,
    app::{App, SharedApp},
    registry::{entry::Entry, error::RegistryError, life::Back},
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// Of the API, where a client states none.
const FORK_TIMEOUT: u64 = 15;
const CONNECT_TIMEOUT: u64 = 300;
/// As many as clients may ask for at a time.
const MAX_FORKS: u32 = 100;

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
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    let (entry, timeout, back) = asked(&app, &key, &id, &body)?;
    let connected = unbroken({
        let (app, entry) = (app.clone(), Arc::clone(&entry));
        async move { app.registry.connect(&entry, timeout, back).await }
    });
    let status = if connected.await?? { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(views::created(&app, &entry))))
}

/// `POST /sandboxes/{id}/resume`, of older clients: 409 when it runs.
pub(super) async fn resume(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    let (entry, timeout, back) = asked(&app, &key, &id, &body)?;
    let resumed = unbroken({
        let (app, entry) = (app.clone(), Arc::clone(&entry));
        async move { app.registry.resume(&entry, timeout, back).await }
    });
    if !resumed.await?? {
        return Err(ApiError::new(StatusCode::CONFLICT, format!("sandbox {id} is already running")));
    }
    Ok((StatusCode::CREATED, Json(views::created(&app, &entry))))
}

fn asked(app: &App, key: &Key, id: &str, body: &Bytes) -> Result<(Arc<Entry>, Duration, Back), ApiError> {
    let body: ConnectBody = optional(body)?;
    let entry = app.registry.find(&key.id, id)?;
    let timeout = timeout(app, body.timeout.unwrap_or(CONNECT_TIMEOUT))?;
    Ok((entry, timeout, Back::with_memory(body.memory)))
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
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let body: PauseBody = optional(&body)?;
    let entry = app.registry.find(&key.id, &id)?;
    let (back, healthy) = (Back::with_memory(body.memory), body.require_healthy_guest);
    unbroken(async move { app.registry.pause(&key, &entry, back, healthy).await }).await??;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(super) struct TimeoutBody {
    timeout: u64,
}

/// `POST /sandboxes/{id}/timeout`.
pub(super) async fn set_timeout(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    body: Result<Json<TimeoutBody>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let timeout = timeout(&app, body?.0.timeout)?;
    let entry = app.registry.find(&key.id, &id)?;
    app.registry.set_timeout(&entry, timeout).await?;
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
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let body: RefreshBody = optional(&body)?;
    let timeout = timeout(&app, body.duration.unwrap_or(CONNECT_TIMEOUT))?;
    let entry = app.registry.find(&key.id, &id)?;
    app.registry.extend(&entry, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /sandboxes/{id}/network`: what is denied is denied already, and nothing can be allowed.
pub(super) async fn set_network(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    body: Result<Json<Network>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let network = body?.0;
    network.check()?;
    if network.is_about_ports() {
        return Err(ApiError::bad("maskRequestHost and httpsPorts can only be set when a sandbox is created"));
    }
    app.registry.find(&key.id, &id)?;
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
    sandbox: Option<Created>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

/// `POST /sandboxes/{id}/fork`: all copies, or an error for each.
pub(super) async fn fork(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Vec<ForkResult>>), ApiError> {
    let body: ForkBody = optional(&body)?;
    let count = body.count.unwrap_or(1);
    if !(1..=MAX_FORKS).contains(&count) {
        return Err(ApiError::bad(format!("invalid count: must be between 1 and {MAX_FORKS}")));
    }
    let timeout = timeout(&app, body.timeout.unwrap_or(FORK_TIMEOUT))?;
    let entry = app.registry.find(&key.id, &id)?;
    let forked = unbroken({
        let app = app.clone();
        async move { app.registry.fork(&key, &entry, count, timeout).await }
    });
    let results = match forked.await? {
        Ok(copies) => {
            copies.iter().map(|copy| ForkResult { sandbox: Some(views::created(&app, copy)), error: None }).collect()
        }
        // Of the sandbox that was to be forked, not of a copy.
        Err(
            error @ (RegistryError::Unknown(_)
            | RegistryError::Paused(_)
            | RegistryError::Quota(_)
            | RegistryError::StorageQuota { .. }
            | RegistryError::AuditQuota { .. }),
        ) => return Err(error.into()),
        Err(error) => {
            let error = ApiError::from(error);
            let failed = || json!({ "code": error.status.as_u16(), "message": error.message });
            (0..count).map(|_| ForkResult { sandbox: None, error: Some(failed()) }).collect()
        }
    };
    Ok((StatusCode::CREATED, Json(results)))
}
