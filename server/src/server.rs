//! A server from its configuration to its end.

use crate::{
    access::{
        Access,
        keys::{KeyError, KeyStore},
        rate::{Failures, RateLimits},
        tokens::{TokenError, Tokens},
    },
    app::{App, Rooms, SharedApp},
    config::Config,
    control_plane, listen,
    registry::{OpenError, Registry, error::RegistryError},
    sandbox_plane,
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
use rustix::fs::{FlockOperation, flock};
use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::Manager;
use std::{
    fs::{DirBuilder, File, OpenOptions},
    future::Future,
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its files.
    #[error("cannot prepare {}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two servers would end each other's sandboxes.
    #[error("cannot use the home {}: another server uses it", .0.display())]
    Taken(PathBuf),
    /// Nobody can listen there.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its configuration, or what the server before left.
    #[error("{0}")]
    Open(String),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] listen::TlsError),
    /// Keys.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// Tokens.
    #[error("{0}")]
    Token(#[from] TokenError),
}

impl From<OpenError> for ServerError {
    fn from(error: OpenError) -> Self {
        Self::Open(error.to_string())
    }
}

impl From<RegistryError> for ServerError {
    fn from(error: RegistryError) -> Self {
        Self::Open(error.to_string())
    }
}

/// A server that listens and has found its sandboxes.
#[derive(Debug)]
pub struct Server {
    app: SharedApp,
    api: TcpListener,
    sandboxes: TcpListener,
    metrics: Option<TcpListener>,
    tls: Option<listen::Tls>,
    _lock: File,
}

impl Server {
    /// Takes the home, listens, and finds the sandboxes that the server before had.
    ///
    /// # Errors
    /// Every [`ServerError`].
    pub async fn open(config: Config, manager: Manager, bundle: Bundle) -> Result<Self, ServerError> {
        let directory = manager.root().join("server");
        let failed = |source| ServerError::Io { path: directory.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(directory.join("lock")).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ServerError::Taken(manager.root().to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
        let tls = config.tls.as_ref().map(listen::Tls::read).transpose()?;
        let (api, sandboxes) = (bind(config.api).await?, bind(config.sandboxes).await?);
        let metrics = match config.metrics {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let access = Access {
            keys: KeyStore::open(&KeyStore::path_in(manager.root()))?,
            tokens: Tokens::open(&directory.join("secret"))?,
            rates: RateLimits::default(),
            failures: Failures::default(),
        };
        let registry = Registry::open(&config, manager, bundle)?;
        let recovered = registry.recover().await?;
        tracing::info!(?recovered, "recovered sandboxes from the previous run");
        let app = Arc::new(App { rooms: Rooms::of(&config), config, access, registry });
        Ok(Self { app, api, sandboxes, metrics, tls, _lock: lock })
    }

    /// Where the control plane listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn api_address(&self) -> io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// Where requests to sandboxes are taken.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn sandboxes_address(&self) -> io::Result<SocketAddr> {
        self.sandboxes.local_addr()
    }

    /// Answers until `end`, then lets requests in flight come to theirs, for as long as the configuration says. The
    /// sandboxes go on.
    pub async fn run(self, end: impl Future<Output = ()>) {
        let (ending, connections) = (CancellationToken::new(), TaskTracker::new());
        let limits = listen::limits(self.app.config.connections, self.app.config.connections_per_address);
        let measured = Arc::new(Metrics::of(&self.app));
        let observed = |plane, router: Router| {
            router.layer(middleware::from_fn_with_state((plane, Arc::clone(&measured)), observe))
        };
        let control = observed(Plane::Control, control_plane::router(Arc::clone(&self.app)));
        let traffic = observed(Plane::Sandbox, sandbox_plane::router(Arc::clone(&self.app)));
        let scraped = scraped(Arc::clone(&self.app), Arc::clone(&measured));
        let shared = (self.tls, ending.clone(), connections.clone());
        let listeners = async {
            tokio::join!(
                listen::accept(self.api, control, limits, shared.clone()),
                listen::accept(self.sandboxes, traffic, limits, shared.clone()),
                async {
                    if let Some(metrics) = self.metrics {
                        listen::accept(metrics, scraped, limits, (None, shared.1.clone(), shared.2.clone())).await;
                    }
                },
            );
        };
        // Tasks of their own: what takes its time there must not keep a connection waiting.
        let (of_time, of_samples) = (Arc::clone(&self.app), Arc::clone(&self.app));
        let _time = AbortOnDropHandle::new(tokio::spawn(async move { of_time.registry.keep_time().await }));
        let _samples = AbortOnDropHandle::new(tokio::spawn(async move { of_samples.registry.keep_samples().await }));
        let of_trails = Arc::clone(&self.app);
        let _trails = AbortOnDropHandle::new(tokio::spawn(async move { of_trails.registry.keep_trails().await }));
        tokio::select! {
            () = listeners => {}
            () = end => {}
        }
        ending.cancel();
        connections.close();
        let grace = Duration::from_secs(self.app.config.shutdown_grace);
        if tokio::time::timeout(grace, connections.wait()).await.is_err() {
            tracing::warn!(open = connections.len(), "closing connections that are still open");
        }
    }
}

/// What Prometheus reads.
fn scraped(app: SharedApp, metrics: Arc<Metrics>) -> Router {
    let render = move || async move {
        let kind = (CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        match metrics.render(&app.registry) {
            Ok(text) => ([kind], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    Router::new().route("/metrics", get(render))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}
