//! Listeners: TLS or not, HTTP/1.1 or HTTP/2 by what the client begins with. [`connections`] bounds how many there are;
//! none stays open without a request. Knows nothing of what is asked.

pub(crate) mod connections;
mod tls;

pub(crate) use tls::Tls;
pub use tls::TlsError;

use crate::{held::Held, unread};
use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use connections::{Connection, Connections, InUse, Limits, Peer};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// From a connection's first byte to the end of a request's headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// How long a connection stays open between two requests, as nginx has it.
const IDLE: Duration = Duration::from_secs(75);
/// A TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long a client has to read that its connection closes.
const GOODBYE: Duration = Duration::from_secs(1);
/// All headers of a request.
const MAX_HEADERS: usize = 64 << 10;
/// As E2B's edge has it; clients open another connection beyond.
const MAX_STREAMS: u32 = 100;
/// HTTP/2 asks so often whether a silent client is there.
const PING_EVERY: Duration = Duration::from_secs(30);

/// What all listeners of a server share: TLS, its end, its open connections.
pub(crate) type Shared = (Option<Tls>, CancellationToken, TaskTracker);

/// The number of connections of a listener, in all and of one peer address; the times are the module's.
pub(crate) fn limits(all: usize, of_one_peer: usize) -> Limits {
    Limits { all, of_one_peer, first_request: HEADERS_WITHIN, idle: IDLE }
}

/// Serves connections until the server ends.
pub(crate) async fn accept(listener: TcpListener, router: Router, limits: Limits, (tls, ending, tracker): Shared) {
    // The last layer is the outermost: what `unread` still reads of a request is part of it.
    let router = router.layer(middleware::from_fn(unread::answer)).layer(middleware::from_fn(occupy));
    let connections = Connections::new(limits, ending.clone(), tracker.clone());
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: those that end give theirs back.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = ending.cancelled() => return,
        };
        let entered = tokio::select! {
            entered = connections.enter(Peer::from(address.ip())) => entered,
            () = ending.cancelled() => return,
        };
        let Some(connection) = entered else {
            tracing::debug!(%address, "rejected a connection: its address has reached its limit");
            continue;
        };
        let (router, tls) = (router.clone(), tls.clone());
        tracker.spawn(async move {
            if let Err(error) = begin(stream, router, tls, &connection).await {
                tracing::debug!(%error, "a connection failed");
            }
        });
    }
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn begin(stream: TcpStream, router: Router, tls: Option<Tls>, connection: &Arc<Connection>) -> Ended {
    stream.set_nodelay(true)?;
    let Some(Tls(acceptor)) = tls else { return serve(stream, router, connection).await };
    let handshake = tokio::select! {
        handshake = timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)) => handshake,
        _ = connection.unused() => return Ok(()),
    };
    serve(handshake.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??, router, connection).await
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    connection: &Arc<Connection>,
) -> Ended {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEADERS).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY);
    let of_request = Arc::clone(connection);
    // hyper's timer of headers starts after it has seen which version of HTTP a client speaks, and HTTP/2 has none:
    // `unused` covers both.
    let service = TowerToHyperService::new(router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(of_request.peer);
        request.extensions_mut().insert(of_request.begin());
        request.map(Body::new)
    }));
    let http = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(http);
    let is_server_ending = tokio::select! {
        ended = http.as_mut() => return ended,
        place_is_needed = connection.unused() => match place_is_needed {
            true => return Ok(()),
            false => false,
        },
        () = connection.ending().cancelled() => true,
    };
    http.as_mut().graceful_shutdown();
    if is_server_ending {
        return http.await;
    }
    loop {
        match timeout(GOODBYE, http.as_mut()).await {
            Ok(ended) => return ended,
            Err(_) if connection.is_in_use() => {}
            Err(_) => return Ok(()),
        }
    }
}

/// A connection is in use until the answer's body has been sent or given up.
async fn occupy(request: Request, next: Next) -> Response {
    let in_use = request.extensions().get::<Arc<InUse>>().cloned();
    next.run(request).await.map(|body| Held::body(body, in_use))
}

#[cfg(test)]
mod tests;
