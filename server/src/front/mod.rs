//! The process that parses what comes from the network: HTTP, TLS, E2B's API. It has no privileges, no files, no keys and no
//! tokens: only the listeners, a socket to the launcher, and what the launcher gives it for each request.
//!
//! It may be taken over by a client. Then it can do what its clients may do whose credentials it sees from then on, and nothing
//! else: `launcher` checks every request, and [`confine`] takes everything else away.

mod confine;
mod filter;

pub use confine::{ConfineError, FrontUser, confine, user_of_front};

use crate::{
    access::Pace,
    app::{App, ConcurrencyLimits, SharedApp},
    channel::{
        client::Launcher,
        failure::Failure,
        request::{Figures, Request, Setup},
    },
    control_plane, listen, sandbox_plane,
    telemetry::{
        metrics::{Metrics, Plane},
        request::observe,
    },
};
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    middleware,
    response::IntoResponse,
    routing::get,
};
use std::{
    io,
    net::TcpListener as StdTcpListener,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    sync::Arc,
    time::Duration,
};
use tokio::net::{TcpListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Why a front does not serve.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// A socket that it received cannot be used.
    #[error("cannot use the sockets of the front: {0}")]
    Socket(#[from] io::Error),
    /// The certificate.
    #[error("cannot use the certificate and its key: {0}")]
    Tls(String),
    /// The launcher gave it nothing to serve with.
    #[error("cannot set up the front: {0}")]
    Launcher(String),
}

impl From<Failure> for FrontError {
    fn from(failure: Failure) -> Self {
        Self::Launcher(failure.message)
    }
}

/// Serves until the launcher says that the server ends, or has ended itself. `socket` is the one that the launcher made.
///
/// # Errors
/// Every [`FrontError`].
pub async fn serve_front(socket: OwnedFd) -> Result<(), FrontError> {
    let socket = StdUnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let (end, gone) = (CancellationToken::new(), CancellationToken::new());
    let launcher = Launcher::on(UnixStream::from_std(socket)?, end.clone(), gone.clone());
    let reply = launcher.ask_with(Request::Setup, Vec::new()).await?;
    let Setup { config, tls } =
        serde_json::from_slice(&reply.head).map_err(|error| FrontError::Launcher(error.to_string()))?;
    let tls = tls.map(|(chain, key)| listen::Tls::new(&chain, &key).map_err(FrontError::Tls)).transpose()?;
    let listeners = reply.descriptors.into_iter().map(listener).collect::<io::Result<Vec<_>>>()?;
    let mut listeners = listeners.into_iter();
    let (Some(api), Some(sandboxes)) = (listeners.next(), listeners.next()) else {
        return Err(FrontError::Launcher("listeners are missing".to_owned()));
    };
    let app = Arc::new(App { limits: ConcurrencyLimits::of(&config), config, pace: Pace::default(), launcher });
    serve(app, (api, sandboxes, listeners.next()), tls, end, gone).await
}

fn listener(socket: OwnedFd) -> io::Result<TcpListener> {
    let socket = StdTcpListener::from(socket);
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

async fn serve(
    app: SharedApp,
    (api, sandboxes, metrics): (TcpListener, TcpListener, Option<TcpListener>),
    tls: Option<listen::Tls>,
    end: CancellationToken,
    gone: CancellationToken,
) -> Result<(), FrontError> {
    let (ending, connections) = (CancellationToken::new(), TaskTracker::new());
    let limits = listen::limits(app.config.connections, app.config.connections_per_address);
    let measured = Arc::new(Metrics::of(&app));
    let observed =
        |plane, router: Router| router.layer(middleware::from_fn_with_state((plane, Arc::clone(&measured)), observe));
    let control = observed(Plane::Control, control_plane::router(Arc::clone(&app)));
    let traffic = observed(Plane::Sandbox, sandbox_plane::router(Arc::clone(&app)));
    let scraped = scraped(Arc::clone(&app), Arc::clone(&measured));
    let shared = (tls, ending.clone(), connections.clone());
    let listeners = async {
        tokio::join!(
            listen::accept(api, control, limits, shared.clone()),
            listen::accept(sandboxes, traffic, limits, shared.clone()),
            async {
                if let Some(metrics) = metrics {
                    listen::accept(metrics, scraped, limits, (None, shared.1.clone(), shared.2.clone())).await;
                }
            },
        );
    };
    app.launcher.ask::<()>(Request::Serving).await?;
    tokio::select! {
        () = listeners => {}
        () = end.cancelled() => {}
        () = gone.cancelled() => return Ok(()),
    }
    ending.cancel();
    connections.close();
    let grace = Duration::from_secs(app.config.shutdown_grace);
    tokio::select! {
        waited = tokio::time::timeout(grace, connections.wait()) => {
            if waited.is_err() {
                tracing::warn!(open = connections.len(), "closing connections that are still open");
            }
        }
        () = gone.cancelled() => {}
    }
    Ok(())
}

/// What Prometheus reads.
fn scraped(app: SharedApp, metrics: Arc<Metrics>) -> Router {
    let render = move || async move {
        let kind = (CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        let failed = |error: String| (StatusCode::INTERNAL_SERVER_ERROR, error).into_response();
        let figures: Figures = match app.launcher.ask(Request::Measure).await {
            Ok(figures) => figures,
            Err(failure) => return failed(failure.message),
        };
        match metrics.render(&figures) {
            Ok(text) => ([kind], text).into_response(),
            Err(error) => failed(error.to_string()),
        }
    };
    Router::new().route("/metrics", get(render))
}
