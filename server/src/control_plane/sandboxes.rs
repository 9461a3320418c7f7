//! Making, finding, listing and killing sandboxes.

use super::{admission::Caller, error::ApiError, network::NetworkBody};
use crate::{
    app::SharedApp,
    channel::request::{Create, ListFilter, Operation, PageOf, Rows},
    registry::record::OnTimeout,
    store::unix_millis,
    volumes::WantedMount,
};
use axum::{
    Extension, Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode},
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

/// What a sandbox has unless its client says otherwise, in seconds.
const DEFAULT_TIMEOUT: u64 = 300;

/// Body of create. What E2B knows and is not here is refused where it would change what the sandbox may do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateBody {
    #[serde(rename = "templateID")]
    template_id: String,
    timeout: Option<u64>,
    #[serde(default)]
    auto_pause: bool,
    auto_pause_memory: Option<bool>,
    auto_resume: Option<AutoResume>,
    secure: Option<bool>,
    #[serde(alias = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    network: Option<NetworkBody>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    mcp: Option<Value>,
    iam: Option<Value>,
    volume_mounts: Option<Vec<VolumeMount>>,
}

/// A volume to be mounted, by its name.
#[derive(Debug, Deserialize)]
struct VolumeMount {
    name: String,
    path: String,
}

#[derive(Debug, Deserialize)]
struct AutoResume {
    enabled: bool,
}

/// `POST /v2/sandboxes`: always with a token.
pub(super) async fn create(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<CreateBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    make(&app, &caller, body?.0, true).await
}

/// `POST /sandboxes`: with a token where the client says `secure`.
pub(super) async fn create_v1(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<CreateBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    make(&app, &caller, body?.0, false).await
}

async fn make(
    app: &SharedApp,
    caller: &Caller,
    body: CreateBody,
    secure: bool,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if body.mcp.as_ref().is_some_and(|mcp| !mcp.is_null()) {
        return Err(ApiError::unsupported("the mcp option of sandboxes"));
    }
    if body.iam.as_ref().is_some_and(|iam| !iam.is_null()) {
        return Err(ApiError::unsupported("iam"));
    }
    let auto_resume = body.auto_resume.is_some_and(|auto| auto.enabled);
    let on_timeout = match (body.auto_pause, body.auto_pause_memory) {
        (false, _) => OnTimeout::Kill,
        (true, Some(false)) if auto_resume => {
            return Err(ApiError::bad(
                "autoResume: a sandbox that is paused without memory must be resumed explicitly",
            ));
        }
        (true, Some(false)) => OnTimeout::PauseFilesystem,
        (true, _) => OnTimeout::Pause,
    };
    let network = body.network.unwrap_or_default();
    network.check()?;
    let env = body.env_vars.unwrap_or_default();
    let mounts = body.volume_mounts.unwrap_or_default();
    let wanted = Create {
        template: body.template_id,
        timeout: body.timeout.unwrap_or(DEFAULT_TIMEOUT),
        on_timeout,
        auto_resume,
        metadata: body.metadata.unwrap_or_default(),
        env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        secure: secure || body.secure == Some(true),
        public_traffic: network.allow_public_traffic.unwrap_or(true),
        mask_request_host: network.mask_request_host,
        https_ports: network.https_ports.unwrap_or_default(),
        allow_internet_access: body.allow_internet_access,
        egress: network.egress,
        volume_mounts: mounts.into_iter().map(|VolumeMount { name, path }| WantedMount { name, path }).collect(),
    };
    Ok((StatusCode::CREATED, Json(caller.ask(app, Operation::Create(wanted)).await?)))
}

/// `GET /sandboxes/{id}`.
pub(super) async fn info(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(caller.ask(&app, Operation::Show { id }).await?))
}

/// `DELETE /sandboxes/{id}`.
pub(super) async fn kill(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.ask::<()>(&app, Operation::Kill { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /sandboxes/{id}/tokens`: the sandbox's tokens open nothing from now on, and others do, which are answered.
pub(super) async fn revoke_tokens(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    Ok((StatusCode::CREATED, Json(caller.ask(&app, Operation::RevokeTokens { id }).await?)))
}

/// What a list may be narrowed to.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListQuery {
    /// `running,paused`.
    state: Option<String>,
    /// `key=value&key=value`, itself encoded as a query.
    metadata: Option<String>,
    template: Option<String>,
    order: Option<String>,
    started_after: Option<String>,
    limit: Option<usize>,
    next_token: Option<String>,
}

/// `GET /v2/sandboxes`, a page at a time.
pub(super) async fn list(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<(HeaderMap, Json<Value>), ApiError> {
    let Query(query) = query?;
    let page = PageOf { limit: query.limit, token: query.next_token.clone() };
    let rows = caller.ask(&app, Operation::List(ListFilter { page: Some(page), ..filter(query)? })).await?;
    Ok(paged(rows))
}

/// `GET /sandboxes`: all that run.
pub(super) async fn list_v1(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let query = ListQuery { metadata: query?.0.metadata, state: Some("running".into()), ..ListQuery::default() };
    let rows: Rows = caller.ask(&app, Operation::List(filter(query)?)).await?;
    Ok(Json(rows.rows))
}

/// Rows as the body, and the token of the next page as a header.
pub(super) fn paged(rows: Rows) -> (HeaderMap, Json<Value>) {
    let mut headers = HeaderMap::new();
    if let Some(next) = rows.next.and_then(|next| HeaderValue::from_str(&next).ok()) {
        headers.insert("x-next-token", next);
    }
    (headers, Json(rows.rows))
}

fn filter(query: ListQuery) -> Result<ListFilter, ApiError> {
    let states: Option<BTreeSet<String>> =
        query.state.as_deref().map(|states| states.split(',').map(str::to_owned).collect());
    if let Some(unknown) = states.iter().flatten().find(|state| !matches!(state.as_str(), "running" | "paused")) {
        return Err(ApiError::bad(format!("invalid state {unknown:?}: expected running or paused")));
    }
    let metadata = query.metadata.as_deref().map_or_else(|| Ok(BTreeMap::new()), metadata)?;
    let started_after = match &query.started_after {
        None => 0,
        Some(text) => {
            let at: jiff::Timestamp =
                text.parse().map_err(|_| ApiError::bad("invalid startedAfter: expected a time in RFC 3339 format"))?;
            unix_millis(SystemTime::from(at))
        }
    };
    let oldest_first = query.order.as_deref() == Some("asc");
    Ok(ListFilter { states, metadata, template: query.template, started_after, oldest_first, page: None })
}

/// `key=value&...`, whose keys and values clients encode once more each.
fn metadata(text: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(text)
        .map_err(|error| ApiError::bad(format!("invalid metadata: expected key=value&...: {error}")))?;
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    Ok(pairs.iter().map(|(key, value)| (decoded(key), decoded(value))).collect())
}
