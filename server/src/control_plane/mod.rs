//! The control plane: E2B's REST API over the launcher. Handlers read requests, ask the launcher, and pass on what it answers;
//! they decide nothing.

mod admission;
mod builds;
mod error;
mod lifetime;
mod logs;
mod metrics;
mod network;
mod sandboxes;
mod snapshots;
mod templates;
mod uploads;
mod volume_content;
mod volumes;

use crate::{
    app::SharedApp,
    channel::request::{Figures, Request},
    telemetry::request::name_route,
};
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    middleware,
    routing::{get, post, put},
};
use error::ApiError;

/// Returns the routes of the control plane.
pub(crate) fn router(app: SharedApp) -> Router {
    let api: Router<SharedApp> = Router::new()
        .route("/sandboxes", post(sandboxes::create_v1).get(sandboxes::list_v1))
        .route("/v2/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/sandboxes/metrics", get(metrics::of_many))
        .route("/sandboxes/{id}", get(sandboxes::info).delete(sandboxes::kill))
        .route("/sandboxes/{id}/connect", post(lifetime::connect))
        .route("/v2/sandboxes/{id}/connect", post(lifetime::connect))
        .route("/sandboxes/{id}/resume", post(lifetime::resume))
        .route("/sandboxes/{id}/pause", post(lifetime::pause))
        .route("/sandboxes/{id}/timeout", post(lifetime::set_timeout))
        .route("/sandboxes/{id}/refreshes", post(lifetime::refresh))
        .route("/sandboxes/{id}/network", put(network::set))
        .route("/sandboxes/{id}/fork", post(lifetime::fork))
        .route("/sandboxes/{id}/tokens", post(sandboxes::revoke_tokens))
        .route("/sandboxes/{id}/snapshots", post(snapshots::create))
        .route("/sandboxes/{id}/metrics", get(metrics::of_one))
        .route("/sandboxes/{id}/logs", get(logs::v1))
        .route("/v2/sandboxes/{id}/logs", get(logs::v2))
        .route("/volumes", get(volumes::list).post(volumes::create))
        .route("/volumes/{id}", get(volumes::show).delete(volumes::remove))
        .route("/snapshots", get(snapshots::list))
        .route("/templates", get(templates::list))
        .route("/v2/templates", get(templates::list).post(builds::request))
        .route("/v3/templates", post(builds::request))
        .route("/templates/tags", post(builds::assign_tags).delete(builds::remove_tags))
        .route("/templates/{id}/tags", get(builds::tags))
        .route("/templates/{id}/files/{hash}", get(builds::upload_url))
        .route("/v2/templates/{id}/builds/{build}", post(builds::start))
        .route("/templates/{id}/builds/{build}/status", get(builds::status))
        .route("/templates/{id}/builds/{build}/logs", get(builds::logs))
        .route("/templates/aliases/{alias}", get(templates::alias))
        .route("/templates/{id}", get(builds::show).delete(snapshots::remove))
        .fallback(|| async {
            ApiError::new(
                StatusCode::NOT_IMPLEMENTED,
                "this server does not have this call; docs/e2b.md lists the calls that it has",
            )
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this call requires another method")
        })
        .route_layer(middleware::from_fn(name_route))
        // `admission` has read the body, and bounded it.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(app.clone(), admission::admit));
    // A token of a volume carries the right to them.
    let content = Router::new()
        .route("/volumecontent/{id}/file", get(volume_content::read).put(volume_content::write))
        .route("/volumecontent/{id}/dir", get(volume_content::list).post(volume_content::make_directory))
        .route(
            "/volumecontent/{id}/path",
            get(volume_content::describe).patch(volume_content::set_owner).delete(volume_content::remove),
        )
        .route_layer(middleware::from_fn(name_route))
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/health", get(|| async { StatusCode::NO_CONTENT }))
        .route("/readiness", get(ready))
        // Its URL carries the right to it.
        .route("/uploads/{template}/{hash}", put(uploads::receive).layer(DefaultBodyLimit::disable()))
        .merge(content)
        .merge(api)
        .with_state(app)
}

/// Ready when new sandboxes would not have to wait for pools that are still empty.
async fn ready(axum::extract::State(app): axum::extract::State<SharedApp>) -> Result<StatusCode, ApiError> {
    let figures: Figures = app.launcher.ask(Request::Measure).await?;
    match figures.pools_are_warm {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "pools are being filled")),
    }
}
