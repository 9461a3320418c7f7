//! Builds of templates. What E2B's API has and this server does not is refused here, before anything happens.

use super::{admission::Caller, error::ApiError};
use crate::{
    app::SharedApp,
    channel::request::{BuildQuery, BuildSpec, Operation, RegistryLogin},
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header::HOST},
};
use sandboxvm_build::e2b::TemplateStep;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad(format!("invalid body: {error}")))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestBody {
    #[serde(alias = "alias")]
    name: Option<String>,
    #[serde(default)]
    tags: Option<Vec<String>>,
    cpu_count: Option<u32>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u64>,
    min_free_disk_mb: Option<u64>,
}

/// `POST /v3/templates`.
pub(super) async fn request(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let RequestBody { name, tags, cpu_count, memory_mb, min_free_disk_mb } = read(&body)?;
    if min_free_disk_mb.is_some_and(|mib| mib > 0) {
        return Err(ApiError::unsupported("minFreeDiskMb"));
    }
    let name = name.ok_or_else(|| ApiError::bad("a template needs a name"))?;
    let operation =
        Operation::RequestBuild { name, tags: tags.unwrap_or_default(), cpus: cpu_count, memory: memory_mb };
    Ok((StatusCode::ACCEPTED, Json(caller.ask(&app, operation).await?)))
}

/// `GET /templates/{id}/files/{hash}`.
pub(super) async fn upload_url(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path((template, hash)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if caller.key.limits.read_only {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "this API key is read-only"));
    }
    let answer: Value = caller.ask(&app, Operation::UploadPath { template, hash }).await?;
    // The client reached this server by this name, and reaches it again by it.
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.map_or_else(|| app.config.api.to_string(), str::to_owned);
    let scheme = if app.config.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{host}{}", answer["path"].as_str().unwrap_or_default());
    Ok((StatusCode::CREATED, Json(json!({ "present": answer["present"], "url": url }))))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StartBody {
    from_image: Option<String>,
    from_template: Option<String>,
    from_image_registry: Option<RegistryBody>,
    #[serde(default)]
    force: Option<bool>,
    #[serde(default)]
    steps: Option<Vec<TemplateStep>>,
    start_cmd: Option<String>,
    ready_cmd: Option<String>,
}

#[derive(Deserialize)]
struct RegistryBody {
    #[serde(rename = "type")]
    kind: String,
    username: Option<String>,
    password: Option<String>,
}

impl std::fmt::Debug for RegistryBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryBody").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// `POST /v2/templates/{id}/builds/{build}`.
pub(super) async fn start(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path((template, build)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let StartBody { from_image, from_template, from_image_registry, force, steps, start_cmd, ready_cmd } = read(&body)?;
    let login = match from_image_registry {
        None => None,
        Some(RegistryBody { kind, username: Some(user), password: Some(password) }) if kind == "registry" => {
            Some(RegistryLogin { user, password })
        }
        Some(RegistryBody { kind, .. }) if kind == "registry" => {
            return Err(ApiError::bad("fromImageRegistry needs username and password"));
        }
        Some(RegistryBody { kind, .. }) => {
            return Err(ApiError::unsupported(&format!("fromImageRegistry of the type {kind:?}")));
        }
    };
    let (force, steps) = (force.unwrap_or(false), steps.unwrap_or_default());
    let spec = BuildSpec { from_image, from_template, login, force, steps, start_cmd, ready_cmd };
    caller.ask::<()>(&app, Operation::StartBuild { template, build, spec: Box::new(spec) }).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `GET /templates/{id}/builds/{build}/status`.
pub(super) async fn status(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path((template, build)): Path<(String, String)>,
    query: Result<Query<BuildQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query?;
    Ok(Json(caller.ask(&app, Operation::BuildStatus { template, build, query }).await?))
}

/// `GET /templates/{id}/builds/{build}/logs`.
pub(super) async fn logs(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path((template, build)): Path<(String, String)>,
    query: Result<Query<BuildQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query?;
    let mut status: Value = caller.ask(&app, Operation::BuildStatus { template, build, query }).await?;
    Ok(Json(json!({ "logs": status["logEntries"].take() })))
}

/// `GET /templates/{id}`.
pub(super) async fn show(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(caller.ask(&app, Operation::ShowTemplate { id }).await?))
}

/// `GET /templates/{id}/tags`.
pub(super) async fn tags(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(caller.ask(&app, Operation::TemplateTags { id }).await?))
}

#[derive(Debug, Deserialize)]
struct AssignBody {
    target: String,
    tags: Vec<String>,
}

/// `POST /templates/tags`.
pub(super) async fn assign_tags(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let AssignBody { target, tags } = read(&body)?;
    Ok((StatusCode::CREATED, Json(caller.ask(&app, Operation::AssignTags { target, tags }).await?)))
}

#[derive(Debug, Deserialize)]
struct RemoveBody {
    name: String,
    tags: Vec<String>,
}

/// `DELETE /templates/tags`.
pub(super) async fn remove_tags(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let RemoveBody { name, tags } = read(&body)?;
    caller.ask::<()>(&app, Operation::RemoveTags { name, tags }).await?;
    Ok(StatusCode::NO_CONTENT)
}
