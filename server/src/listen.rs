//! Connections: TLS or not, HTTP/1.1 or HTTP/2 by what the client begins with, so many at a time, none for ever idle
//! before its first request. Knows nothing of what is asked.

use crate::{config::TlsFiles, unread};
use axum::{Router, body::Body, middleware};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// From a connection's first byte to the end of a request's headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// A TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// All headers of a request.
const MAX_HEADERS: usize = 64 << 10;
/// As E2B's edge has it; clients open another connection beyond.
const MAX_STREAMS: u32 = 100;
/// HTTP/2 asks so often whether a silent client is there.
const PING_EVERY: Duration = Duration::from_secs(30);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the certificate {} and key {}: {problem}", .certificate.display(), .key.display())]
pub struct TlsError {
    certificate: PathBuf,
    key: PathBuf,
    problem: String,
}

/// A certificate, ready.
#[derive(Clone)]
pub(crate) struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// From PEM files.
    pub(crate) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let failed =
            |problem: String| TlsError { certificate: files.certificate.clone(), key: files.key.clone(), problem };
        let read = |path: &PathBuf| fs::read(path).map_err(|error| failed(error.to_string()));
        let chain = CertificateDer::pem_slice_iter(&read(&files.certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| failed(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|error| failed(error.to_string()))?;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| failed(error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

/// What all listeners of a server share: TLS, its end, its open connections.
pub(crate) type Shared = (Option<Tls>, CancellationToken, TaskTracker);

/// Serves connections until the server ends.
pub(crate) async fn accept(listener: TcpListener, router: Router, most: usize, (tls, ending, connections): Shared) {
    let router = router.layer(middleware::from_fn(unread::answer));
    let places = Arc::new(Semaphore::new(most.max(1)));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: those that end give theirs back.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = ending.cancelled() => return,
        };
        let (router, tls, ending) = (router.clone(), tls.clone(), ending.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, router, tls, ending).await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    tls: Option<Tls>,
    ending: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    match tls {
        None => serve(stream, router, ending).await,
        Some(Tls(acceptor)) => {
            let handshake = timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await;
            serve(handshake.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??, router, ending).await
        }
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    ending: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEADERS).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY);
    let service =
        TowerToHyperService::new(router.map_request(|request: hyper::Request<Incoming>| request.map(Body::new)));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = ending.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
