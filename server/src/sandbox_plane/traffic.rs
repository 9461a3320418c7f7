//! Requests to servers in a sandbox: forwarded to a port of its loopback, answers and WebSockets included.
//!
//! The guest's side speaks HTTP/1.1 on a connection for each request, which hyper reads: what it says is a guest's, so
//! headers are bounded, and nothing of its framing is passed on but the bytes that were framed. What is for this server or
//! for one hop alone goes no further in either direction.

use super::{Refusal, address::text, guest_tls, sent::Sent, tunnel};
use crate::{app::App, channel::reached::Reached};
use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version,
        header::{
            ACCEPT, CONNECTION, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
            UPGRADE,
        },
    },
    response::{IntoResponse, Response},
};
use hyper::{client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use sandboxvm_manager::{AgentError, ExecError, FailureKind, PortNumber};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// All headers of a guest's answer.
const MAX_HEADERS: usize = 64 << 10;
/// Most of them.
const MAX_HEADER_COUNT: usize = 200;
/// Of one hop: RFC 9110, section 7.6.1, and what browsers and proxies add to it.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Forwards it.
pub(super) async fn forward(app: &App, reached: Reached, port: u16, mut request: Request<Body>) -> Response {
    let wants_page = text(request.headers(), ACCEPT.as_str()).is_some_and(|accept| accept.contains("text/html"));
    let id = reached.id.to_string();
    let Ok(number) = PortNumber::try_from(port) else { return Refusal::PortClosed { id, port }.into_response() };
    let stream = match reached.sandbox.connect(number).await {
        Ok(stream) => stream,
        Err(ExecError::Agent(AgentError::Refused { kind: FailureKind::ConnectionRefused, .. })) => {
            return Refusal::PortClosed { id, port }.answer(wants_page);
        }
        Err(error) => return Refusal::Unreachable { id, port, problem: error.to_string() }.answer(wants_page),
    };
    let (client, holds) = (hyper::upgrade::on(&mut request), tunnel::Holds::of(request.extensions()));
    let ingress = &reached.facts.ingress;
    let asks_upgrade = match prepare(&mut request, app.config.tls.is_some(), ingress.host(port).as_deref()) {
        Ok(asks_upgrade) => asks_upgrade,
        Err(refusal) => return refusal.into_response(),
    };
    let stream: Box<dyn Stream> = match (reached.facts.is_sent_by_launcher, ingress.is_https(port)) {
        (true, _) => Box::new(Sent::new(stream)),
        (false, false) => Box::new(stream),
        (false, true) => match guest_tls::begin(stream, text(request.headers(), HOST.as_str())).await {
            Ok(stream) => Box::new(stream),
            Err(error) => {
                let problem = format!("what listens there does not answer as a TLS server does: {error}");
                return Refusal::Unreachable { id, port, problem }.answer(wants_page);
            }
        },
    };
    let failed = |error: hyper::Error| {
        let problem = format!("what listens there does not answer as an HTTP/1.1 server does: {error}");
        Refusal::Unreachable { id, port, problem }.answer(wants_page)
    };
    let mut http = http1::Builder::new();
    http.max_buf_size(MAX_HEADERS).max_headers(MAX_HEADER_COUNT);
    let mut sender = match http.handshake(TokioIo::new(stream)).await {
        Ok((sender, connection)) => {
            // Ends with the request, its answer, or the upgraded connection.
            tokio::spawn(async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "a connection to a guest port failed");
                }
            });
            sender
        }
        Err(error) => return failed(error),
    };
    match sender.send_request(request).await {
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            if asks_upgrade {
                upgrade(client, response, Duration::from_secs(app.config.answer_timeout), holds)
            } else {
                unasked_upgrade(reached, port)
            }
        }
        Ok(mut response) => {
            drop_hop_by_hop(response.headers_mut());
            response.map(Body::new)
        }
        Err(error) => failed(error),
    }
}

/// A connection to a server in a sandbox.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Makes it a request of this server's to the guest, with `mask` as its host where there is one. True when it asks for another
/// protocol.
fn prepare(request: &mut Request<Body>, is_tls: bool, mask: Option<&str>) -> Result<bool, Refusal> {
    let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() = target.parse::<Uri>().map_err(|_| Refusal::Malformed)?;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    let wanted = headers.get(UPGRADE).cloned().filter(|_| names(headers, &CONNECTION, "upgrade"));
    let takes_trailers = names(headers, &TE, "trailers");
    drop_hop_by_hop(headers);
    // This server has answered it, or will when it reads the body.
    headers.remove(EXPECT);
    let ours: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    // A client's own say nothing of how it came here.
    headers.remove(FORWARDED_HOST);
    // HTTP/2 has it in the address.
    if let Some(host) = host {
        headers.insert(HOST, host);
    }
    if let Some(host) = headers.get(HOST).cloned() {
        headers.insert(FORWARDED_HOST, host);
    }
    if let Some(mask) = mask.and_then(|mask| HeaderValue::from_str(mask).ok()) {
        headers.insert(HOST, mask);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if is_tls { "https" } else { "http" }));
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let asks_upgrade = wanted.is_some();
    if let Some(wanted) = wanted {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, wanted);
    }
    Ok(asks_upgrade)
}

/// Meant for this server: it says which sandbox, and who may.
fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with("e2b-") || matches!(name.as_str(), "x-access-token" | "x-api-key")
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION).filter_map(|name| name.parse().ok()).collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn names(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|own| own.eq_ignore_ascii_case(token))
}

/// Hands the answer on, and carries bytes both ways once the client has it.
fn upgrade(
    client: OnUpgrade,
    mut response: hyper::Response<hyper::body::Incoming>,
    idle: Duration,
    holds: tunnel::Holds,
) -> Response {
    let guest = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (Ok(client), Ok(guest)) = tokio::join!(client, guest) else { return };
        tunnel::carry(TokioIo::new(client), TokioIo::new(guest), idle, holds).await;
    });
    let protocol = response.headers().get(UPGRADE).cloned();
    let headers = response.headers_mut();
    drop_hop_by_hop(headers);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
    }
    response.map(|_| Body::empty())
}

fn unasked_upgrade(reached: Reached, port: u16) -> Response {
    let id = reached.id.to_string();
    let problem = "what listens there changes to a protocol that nobody asked for".to_owned();
    Refusal::Unreachable { id, port, problem }.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<Body> {
        let request = Request::builder().uri("http://8000-abcdefgh.e2b.app/a?b=c").version(Version::HTTP_2);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn headers_for_the_server_or_the_hop_are_not_forwarded() {
        let mut request = request(&[
            ("e2b-sandbox-id", "abcdefgh"),
            ("E2b-Traffic-Access-Token", "secret"),
            ("x-access-token", "secret"),
            ("x-api-key", "secret"),
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("expect", "100-continue"),
            ("upgrade", "websocket"),
            ("authorization", "Bearer app"),
            ("cookie", "a=b"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-host", "worse.example"),
            ("x-forwarded-proto", "https"),
        ]);
        assert!(!prepare(&mut request, false, None).unwrap(), "Connection does not say so");
        let left: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        for expected in [
            ("authorization", "Bearer app"),
            ("cookie", "a=b"),
            ("host", "8000-abcdefgh.e2b.app"),
            ("x-forwarded-host", "8000-abcdefgh.e2b.app"),
            ("x-forwarded-proto", "http"),
            ("te", "trailers"),
        ] {
            assert!(left.contains(&expected), "{expected:?} of {left:?}");
        }
        assert_eq!(left.len(), 6, "{left:?}");
        assert_eq!((request.uri().to_string().as_str(), request.version()), ("/a?b=c", Version::HTTP_11));
    }

    #[test]
    fn clients_cannot_set_the_forwarded_host_of_a_request_without_host() {
        let request = Request::builder().uri("/a").header("x-forwarded-host", "evil.example");
        let mut request = request.body(Body::empty()).unwrap();
        prepare(&mut request, false, None).unwrap();
        assert!(!request.headers().contains_key("x-forwarded-host"), "{:?}", request.headers());
    }

    #[test]
    fn guest_servers_see_the_masked_host() {
        let mut request = request(&[]);
        prepare(&mut request, true, Some("localhost:8000")).unwrap();
        assert_eq!(request.headers()["host"], "localhost:8000");
        assert_eq!(request.headers()["x-forwarded-host"], "8000-abcdefgh.e2b.app");
    }

    #[test]
    fn upgrade_requests_are_rebuilt_for_the_guest() {
        let mut request = request(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(prepare(&mut request, true, None).unwrap());
        let headers = request.headers();
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn a_guest_cannot_frame_its_answer_for_others() {
        let mut headers = HeaderMap::new();
        headers.insert("connection", HeaderValue::from_static("x-evil, content-type"));
        headers.insert("x-evil", HeaderValue::from_static("1"));
        headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
        headers.insert("set-cookie", HeaderValue::from_static("a=b"));
        drop_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 1);
        assert!(headers.contains_key("set-cookie"));
    }
}
