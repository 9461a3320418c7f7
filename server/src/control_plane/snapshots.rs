//! Snapshots, which clients use as templates.

use super::{error::ApiError, paging::page, sandboxes::unbroken};
use crate::{
    access::keys::Key,
    app::SharedApp,
    registry::{life::Back, templates::SnapshotRecord},
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
};
use serde::{Deserialize, Serialize};

const MAX_NAME: usize = 128;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SnapshotBody {
    name: Option<String>,
    memory: Option<bool>,
}

/// A snapshot as clients read it.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    #[serde(rename = "snapshotID")]
    snapshot_id: String,
    names: Vec<String>,
}

fn shown(snapshot: &SnapshotRecord) -> Shown {
    Shown { snapshot_id: snapshot.id.as_str().to_owned(), names: snapshot.names.clone() }
}

/// `POST /sandboxes/{id}/snapshots`.
pub(super) async fn create(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Shown>), ApiError> {
    let body: SnapshotBody = match body.is_empty() {
        true => SnapshotBody::default(),
        false => serde_json::from_slice(&body).map_err(|error| ApiError::bad(format!("invalid body: {error}")))?,
    };
    if let Some(name) = &body.name {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) {
            return Err(ApiError::bad(format!(
                "invalid name: use 1-{MAX_NAME} characters from a-z, A-Z, 0-9 and -_./:"
            )));
        }
        if app.registry.templates.contains_key(name.as_str()) {
            return Err(ApiError::bad(format!("invalid name {name:?}: a template of this server has this name")));
        }
    }
    let entry = app.registry.find(&key.id, &id)?;
    let back = Back::with_memory(body.memory);
    let made = unbroken(async move { app.registry.snapshot(&key, &entry, body.name, back).await }).await??;
    Ok((StatusCode::CREATED, Json(shown(&made))))
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
    Extension(key): Extension<Key>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<(HeaderMap, Json<Vec<Shown>>), ApiError> {
    let Query(query) = query?;
    let wanted = |snapshot: &SnapshotRecord| {
        query.name.as_ref().is_none_or(|name| snapshot.names.contains(name))
            && query.sandbox_id.as_ref().is_none_or(|id| snapshot.sandbox.as_str() == id)
    };
    let found: Vec<SnapshotRecord> = app.registry.snapshots(&key.id).into_iter().filter(wanted).collect();
    let (headers, page) = page(&found, query.limit, query.next_token.as_deref(), |snapshot| snapshot.id.as_str())?;
    Ok((headers, Json(page.iter().map(shown).collect())))
}

/// `DELETE /templates/{id}`: a snapshot of the key's. Configured templates are the operator's.
pub(super) async fn remove(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    if app.registry.remove_snapshot(&key, &id)? {
        return Ok(StatusCode::NO_CONTENT);
    }
    if app.registry.templates.contains_key(&id) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("template {id} belongs to the configuration of the server"),
        ));
    }
    Err(ApiError::new(StatusCode::NOT_FOUND, format!("template {id} was not found")))
}
