//! A server from its configuration to its end: the launcher, in the process that calls it, and its front.

use crate::{
    access::{
        Credentials,
        keys::{KeyError, KeyStore},
        rate::RateLimits,
        tokens::{TokenError, Tokens},
    },
    config::Config,
    front_process::{Front, FrontMode},
    launcher::{Launcher, Places, SharedLauncher, content_places},
    listen,
    registry::{OpenError, Registry, error::RegistryError},
};
use rustix::{
    net::sockopt::socket_acceptconn,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use sandboxvm_file_lock::{self as file_lock, Sharing};
use sandboxvm_images::bundle::Bundle;
use sandboxvm_manager::{Manager, SupervisorProgram, containment};
use std::{
    collections::VecDeque,
    fs::{DirBuilder, File, OpenOptions},
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

/// A front that ends is replaced so often within [`WINDOW`].
const RESTARTS: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
const BEFORE_RESTART: Duration = Duration::from_millis(200);
/// How long an address may be in use by the front of a server that was killed, which ends a moment later.
const BIND_WITHIN: Duration = Duration::from_secs(2);

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its files.
    #[error("cannot prepare {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// Two servers would end each other's sandboxes.
    #[error("cannot use the home {}: another server uses it", .0.display())]
    Taken(PathBuf),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system reported.
        source: io::Error,
    },
    /// Its configuration, or what the server before left.
    #[error("{0}")]
    Open(String),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] listen::TlsError),
    /// The file of API keys.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The front does not start, or ends again and again.
    #[error("the front does not serve: {0}")]
    Front(String),
    /// The secret that tokens are derived from.
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
    launcher: SharedLauncher,
    /// API, sandboxes, metrics.
    listeners: Vec<TcpListener>,
    /// Where they listen.
    addresses: Vec<SocketAddr>,
    mode: FrontMode,
    front: Front,
    _lock: File,
}

impl Server {
    /// Locks the home, listens, recovers the sandboxes of the previous run, and starts the front.
    ///
    /// # Errors
    /// Every [`ServerError`].
    pub async fn open(
        config: Config,
        manager: Manager,
        bundle: Bundle,
        supervisor: SupervisorProgram,
        mode: FrontMode,
    ) -> Result<Self, ServerError> {
        allow_descriptors();
        let directory = manager.root().join("server");
        let failed = |source| ServerError::Io { path: directory.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(directory.join("lock")).map_err(failed)?;
        if !file_lock::try_take(Sharing::Exclusive, &lock).map_err(failed)? {
            return Err(ServerError::Taken(manager.root().to_owned()));
        }
        let tls = config.tls.as_ref().map(|files| files.read()).transpose()?;
        let mut listeners = Vec::new();
        for address in [Some(config.api), Some(config.sandboxes), config.metrics].into_iter().flatten() {
            listeners.push(bind(address).await?);
        }
        let addresses =
            listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let credentials = Credentials {
            keys: KeyStore::open(&KeyStore::path_in(manager.root()))?,
            tokens: Tokens::open(&directory.join("secret"))?,
        };
        manager.renew_bounds();
        tracing::info!("{}", containment());
        let registry = Registry::open(&config, manager, bundle, supervisor)?;
        tracing::info!("{}", registry.network);
        let recovered = registry.recover().await?;
        tracing::info!(?recovered, "recovered sandboxes from the previous run");
        let launcher = Arc::new(Launcher {
            places: Places::of(&config),
            content_places: content_places(),
            content_pace: RateLimits::default(),
            config,
            credentials,
            registry,
            tls,
        });
        let front = Front::start(&launcher, &listeners, &mode).await.map_err(ServerError::Front)?;
        Ok(Self { launcher, listeners, addresses, mode, front, _lock: lock })
    }

    /// Where the control plane listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn api_address(&self) -> io::Result<SocketAddr> {
        self.listeners[0].local_addr()
    }

    /// Where requests to sandboxes are taken.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn sandboxes_address(&self) -> io::Result<SocketAddr> {
        self.listeners[1].local_addr()
    }

    /// Serves until `end`, then lets the front complete requests in flight for as long as the configuration says. The
    /// sandboxes keep running. A front that ends is replaced.
    ///
    /// # Errors
    /// When fronts end again and again.
    pub async fn run(mut self, end: impl Future<Output = ()>) -> Result<(), ServerError> {
        // Separate tasks: slow work there must not keep a request waiting.
        let keep = || Arc::clone(&self.launcher);
        let (of_time, of_samples, of_networks, of_trails) = (keep(), keep(), keep(), keep());
        let _time = AbortOnDropHandle::new(tokio::spawn(async move { of_time.registry.keep_time().await }));
        let _samples = AbortOnDropHandle::new(tokio::spawn(async move { of_samples.registry.keep_samples().await }));
        let _networks = AbortOnDropHandle::new(tokio::spawn(async move { of_networks.registry.keep_networks().await }));
        let _trails = AbortOnDropHandle::new(tokio::spawn(async move { of_trails.registry.keep_trails().await }));
        let mut end = pin!(end);
        let mut restarts = VecDeque::new();
        loop {
            let ended = tokio::select! {
                ended = self.front.ended() => ended,
                () = &mut end => break,
            };
            let now = Instant::now();
            restarts.retain(|at: &Instant| now.duration_since(*at) < WINDOW);
            if restarts.len() >= RESTARTS {
                return Err(ServerError::Front(ended));
            }
            restarts.push_back(now);
            tracing::error!(%ended, "the front has ended; starting another");
            sleep(BEFORE_RESTART).await;
            replace_ended(&mut self.listeners, &self.addresses).await?;
            let started = Front::start(&self.launcher, &self.listeners, &self.mode).await;
            self.front = started.map_err(ServerError::Front)?;
        }
        self.front.end(Duration::from_secs(self.launcher.config.shutdown_grace)).await;
        Ok(())
    }
}

/// Connections of clients and guests are descriptors: as many as the host allows, for this process and for the front.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Without it, the server has fewer connections.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Replaces listeners that do not listen any more: a front can end them, and the next one needs them.
async fn replace_ended(listeners: &mut Vec<TcpListener>, addresses: &[SocketAddr]) -> Result<(), ServerError> {
    for (at, address) in addresses.iter().enumerate() {
        if !socket_acceptconn(&listeners[at]).is_ok_and(|listens| listens) {
            tracing::warn!(%address, "the front ended a listener; listening again");
            // Closed first: it may still have the address.
            drop(listeners.remove(at));
            listeners.insert(at, bind(*address).await?);
        }
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let until = Instant::now() + BIND_WITHIN;
    loop {
        // As tokio does it: the address may be bound again while connections of a previous server linger.
        match tokio::net::TcpListener::bind(address).await.and_then(tokio::net::TcpListener::into_std) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(source) => return Err(ServerError::Listen { address, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{Shutdown, shutdown};

    #[tokio::test]
    async fn a_listener_that_a_front_ended_is_replaced_at_its_address() {
        let any = || SocketAddr::from(([127, 0, 0, 1], 0));
        let mut listeners = vec![bind(any()).await.unwrap(), bind(any()).await.unwrap()];
        let addresses: Vec<SocketAddr> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
        shutdown(listeners[0].try_clone().unwrap(), Shutdown::Read).unwrap();
        replace_ended(&mut listeners, &addresses).await.unwrap();
        for (listener, address) in listeners.iter().zip(&addresses) {
            assert_eq!(listener.local_addr().unwrap(), *address);
            std::net::TcpStream::connect(address).unwrap();
        }
    }
}
