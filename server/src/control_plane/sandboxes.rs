//! Making, finding, listing and killing sandboxes.

use super::{
    error::ApiError,
    paging::page,
    views::{self, Created, Detail, Listed},
};
use crate::{
    access::keys::Key,
    app::{App, SharedApp},
    registry::{NewSandbox, entry::Entry, error::RegistryError, ingress::Ingress, record::OnTimeout},
};
use axum::{
    Extension, Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What a sandbox has unless its client says otherwise, in seconds.
const DEFAULT_TIMEOUT: u64 = 300;
/// Of all keys and values of a sandbox's metadata.
const MAX_METADATA: usize = 64 << 10;

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
    network: Option<Network>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    mcp: Option<Value>,
    iam: Option<Value>,
    volume_mounts: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
struct AutoResume {
    enabled: bool,
}

/// What a client says of the network, of which a sandbox has none, and of its published ports.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Network {
    allow_public_traffic: Option<bool>,
    allow_out: Option<Vec<Value>>,
    egress_proxy: Option<Value>,
    mask_request_host: Option<String>,
    https_ports: Option<Vec<u64>>,
    rules: Option<BTreeMap<String, Value>>,
}

impl Network {
    /// Refuses what would need a network. Denying is kept anyway.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        let asks = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
        if asks(&self.allow_out) || self.egress_proxy.is_some() || self.rules.as_ref().is_some_and(|r| !r.is_empty()) {
            return Err(ApiError::unsupported(
                "egress: sandboxes have no network, so network.allowOut, rules or egressProxy",
            ));
        }
        Ok(())
    }

    /// Says how ports are reached.
    pub(super) fn is_about_ports(&self) -> bool {
        self.mask_request_host.is_some() || self.https_ports.is_some()
    }
}

/// `POST /v2/sandboxes`: always with a token.
pub(super) async fn create(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    body: Result<Json<CreateBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    make(&app, &key, body?.0, true).await
}

/// `POST /sandboxes`: with a token where the client says `secure`.
pub(super) async fn create_v1(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    body: Result<Json<CreateBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    make(&app, &key, body?.0, false).await
}

async fn make(
    app: &SharedApp,
    key: &Key,
    body: CreateBody,
    secure: bool,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    if body.mcp.as_ref().is_some_and(|mcp| !mcp.is_null()) {
        return Err(ApiError::unsupported("the mcp option of sandboxes"));
    }
    if body.iam.as_ref().is_some_and(|iam| !iam.is_null()) {
        return Err(ApiError::unsupported("iam"));
    }
    if body.volume_mounts.is_some_and(|volumes| !volumes.is_empty()) {
        return Err(ApiError::unsupported("volumeMounts"));
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
    let ingress = Ingress::new(network.mask_request_host, network.https_ports.as_deref().unwrap_or_default())
        .map_err(|error| ApiError::bad(error.to_string()))?;
    let metadata = body.metadata.unwrap_or_default();
    if metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_METADATA {
        return Err(ApiError::bad(format!("invalid metadata: must have at most {MAX_METADATA} bytes")));
    }
    let wanted = NewSandbox {
        template: body.template_id,
        timeout: timeout(app, body.timeout.unwrap_or(DEFAULT_TIMEOUT))?,
        on_timeout,
        auto_resume,
        metadata,
        env: body.env_vars.unwrap_or_default().into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        secure: secure || body.secure == Some(true),
        public_traffic: network.allow_public_traffic.unwrap_or(true),
        ingress,
        allow_internet_access: body.allow_internet_access,
    };
    // In a task of its own: a client that goes away must not leave half a sandbox, nor one that it never heard of.
    let (task_app, task_key) = (Arc::clone(app), key.clone());
    let entry = unbroken(async move { task_app.registry.create(&task_key, wanted).await }).await??;
    Ok((StatusCode::CREATED, Json(views::created(app, &entry))))
}

/// Runs `work` to its end whatever becomes of the request.
pub(super) async fn unbroken<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, ApiError> {
    let ended = tokio::spawn(work).await;
    ended.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the request failed: {error}")))
}

/// Seconds as a client states them.
pub(super) fn timeout(app: &App, seconds: u64) -> Result<Duration, ApiError> {
    let longest = app.config.longest_timeout;
    if seconds > longest {
        return Err(ApiError::bad(format!(
            "timeout: {seconds} s is longer than the {longest} s that a sandbox can have"
        )));
    }
    Ok(Duration::from_secs(seconds))
}

/// `GET /sandboxes/{id}`.
pub(super) async fn info(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
) -> Result<Json<Detail>, ApiError> {
    let entry = app.registry.find(&key.id, &id)?;
    let detail = views::detail(&app, &key, &entry)?;
    detail.map(Json).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("sandbox {id} was not found")))
}

/// `DELETE /sandboxes/{id}`.
pub(super) async fn kill(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let entry = app.registry.find(&key.id, &id)?;
    unbroken(async move { app.registry.kill(&entry).await }).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /sandboxes/{id}/tokens`: the sandbox's tokens open nothing from now on, and others do, which are answered.
pub(super) async fn revoke_tokens(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Created>), ApiError> {
    let entry = app.registry.find(&key.id, &id)?;
    app.registry.revoke_tokens(&entry).await?;
    Ok((StatusCode::CREATED, Json(views::created(&app, &entry))))
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
    Extension(key): Extension<Key>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<(HeaderMap, Json<Vec<Listed>>), ApiError> {
    let Query(query) = query?;
    let mut found = matching(&app, &key, &query)?;
    if query.order.as_deref() == Some("asc") {
        found.reverse();
    }
    let (headers, page) = page(&found, query.limit, query.next_token.as_deref(), |entry| entry.id.as_str())?;
    Ok((headers, Json(rows(&app, page)?)))
}

/// `GET /sandboxes`: all that run.
pub(super) async fn list_v1(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<Listed>>, ApiError> {
    let query = ListQuery { metadata: query?.0.metadata, state: Some("running".into()), ..ListQuery::default() };
    let found = matching(&app, &key, &query)?;
    Ok(Json(rows(&app, &found)?))
}

/// Without those that are gone meanwhile.
fn rows(app: &App, entries: &[Arc<Entry>]) -> Result<Vec<Listed>, RegistryError> {
    entries.iter().filter_map(|entry| views::listed(app, entry).transpose()).collect()
}

/// Newest first.
fn matching(app: &App, key: &Key, query: &ListQuery) -> Result<Vec<Arc<Entry>>, ApiError> {
    let states: Option<Vec<&str>> = query.state.as_deref().map(|states| states.split(',').collect());
    if let Some(unknown) = states.iter().flatten().find(|state| !matches!(**state, "running" | "paused")) {
        return Err(ApiError::bad(format!("invalid state {unknown:?}: expected running or paused")));
    }
    let wanted = query.metadata.as_deref().map_or_else(|| Ok(BTreeMap::new()), metadata)?;
    let after = match &query.started_after {
        None => SystemTime::UNIX_EPOCH,
        Some(text) => {
            let at: jiff::Timestamp =
                text.parse().map_err(|_| ApiError::bad("invalid startedAfter: expected a time in RFC 3339 format"))?;
            SystemTime::from(at)
        }
    };
    let matches = |entry: &Arc<Entry>| {
        let record = entry.record();
        states.as_ref().is_none_or(|states| states.contains(&views::state(&record)))
            && wanted.iter().all(|(key, value)| record.metadata.get(key) == Some(value))
            && query.template.as_ref().is_none_or(|template| record.template.0 == *template)
            && record.started_at >= after
    };
    Ok(app.registry.list(&key.id).into_iter().filter(matches).collect())
}

/// `key=value&...`, whose keys and values clients encode once more each.
fn metadata(text: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(text)
        .map_err(|error| ApiError::bad(format!("invalid metadata: expected key=value&...: {error}")))?;
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    Ok(pairs.iter().map(|(key, value)| (decoded(key), decoded(value))).collect())
}
