//! Any number of clients over streamable HTTP. All of them have the same rights: a client with the token can use every sandbox
//! of the server. Requests without the token, or with another Host or Origin (from a web page in a browser), are rejected
//! before they are parsed.

use crate::{scope::Scope, server::SandboxTools, settings::Settings};
use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use subtle::ConstantTimeEq;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

/// Minimum length of a token.
const MIN_TOKEN: usize = 16;
/// Room for a file of 3 MiB in base64.
const MAX_BODY: usize = 5 << 20;
/// How long requests may take after they are cancelled.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// The address of the server, and who may connect.
pub struct HttpSettings {
    /// The address on which the server listens.
    pub address: SocketAddr,
    /// Host names that requests may use for this server, besides those of the loopback interface and the address.
    pub hosts: Vec<String>,
    /// The token that clients must send.
    pub token: String,
}

impl fmt::Debug for HttpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSettings")
            .field("address", &self.address)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The token could be guessed.
    #[error("invalid token of {0} characters: must have at least {MIN_TOKEN}")]
    ShortToken(usize),
    /// The address cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The listener failed.
    #[error("the HTTP server failed: {0}")]
    Serve(io::Error),
}

/// Serves clients until `until` is done, then removes what they created. Calls `ready` with the address when the server
/// listens. Returns what could not be removed.
///
/// # Errors
/// Every [`HttpError`].
pub async fn serve(
    settings: Settings,
    http: HttpSettings,
    ready: impl FnOnce(SocketAddr),
    until: impl Future<Output = ()>,
) -> Result<Vec<String>, HttpError> {
    if http.token.len() < MIN_TOKEN {
        return Err(HttpError::ShortToken(http.token.len()));
    }
    let failed = |source| HttpError::Listen { address: http.address, source };
    let listener = TcpListener::bind(http.address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let scope = Arc::new(Scope::new(settings));
    let end = CancellationToken::new();
    let app = app(&scope, &http, address, end.clone());
    let ended = end.clone();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move { ended.cancelled().await });
    let mut serving = tokio::spawn(async move { serving.await });
    ready(address);
    let served = tokio::select! {
        served = &mut serving => Some(served),
        () = until => None,
    };
    end.cancel();
    let failures = scope.end().await;
    let served = match served {
        Some(served) => served,
        // Does not wait for clients that keep their connections open.
        None => timeout(ENDED_WITHIN, serving).await.unwrap_or(Ok(Ok(()))),
    };
    served.map_err(io::Error::other).and_then(|served| served).map_err(HttpError::Serve)?;
    Ok(failures)
}

fn app(scope: &Arc<Scope>, http: &HttpSettings, address: SocketAddr, end: CancellationToken) -> Router {
    let config = StreamableHttpServerConfig::default()
        .with_allowed_hosts(hosts(http, address))
        .with_allowed_origins(["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"])
        .enforce_origin_validation()
        .with_max_request_body_bytes(MAX_BODY)
        .with_cancellation_token(end);
    let tools = SandboxTools::new(Arc::clone(scope));
    let service =
        StreamableHttpService::new(move || Ok(tools.clone()), Arc::new(LocalSessionManager::default()), config);
    let token: Arc<str> = http.token.as_str().into();
    Router::new().nest_service("/mcp", service).layer(middleware::from_fn_with_state(token, authorize))
}

/// Returns the host names that requests may use for the server.
fn hosts(http: &HttpSettings, address: SocketAddr) -> Vec<String> {
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "[::1]", "::1"].map(str::to_owned).into();
    if !address.ip().is_unspecified() {
        hosts.push(match address.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        });
    }
    hosts.extend(http.hosts.iter().cloned());
    hosts
}

async fn authorize(State(token): State<Arc<str>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    if shown.is_some_and(|shown| bool::from(shown.as_bytes().ct_eq(token.as_bytes()))) {
        return next.run(request).await;
    }
    let message = "this MCP server requires its token: Authorization: Bearer TOKEN\n";
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], message).into_response()
}
