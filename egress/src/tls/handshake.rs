//! Both handshakes of a connection whose TLS is ended: first the one with the server, whose certificate is verified, then
//! the one with the guest, which gets a certificate of the sandbox's authority and the protocol that the server chose.

use super::{leaves::LeafError, trust::Trust};
use crate::credentials::Credentials;
use sandboxvm_egress_policy::name::{DomainName, NameError};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{error::Elapsed, timeout},
};
use tokio_rustls::{
    LazyConfigAcceptor, StartHandshake, TlsConnector, client,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{InvalidDnsNameError, ServerName},
        server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert},
        sign::CertifiedKey,
    },
    server,
};

/// How long each handshake may take.
const WITHIN: Duration = Duration::from_secs(10);

/// How long a refused guest may take to fail.
const REFUSE_WITHIN: Duration = Duration::from_secs(2);

const H2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// What both sides speak above TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Why TLS cannot be ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("the guest began no TLS: {0}")]
    Guest(#[source] io::Error),
    #[error("a handshake took too long")]
    TooLong(#[from] Elapsed),
    #[error("the connection names another host in its handshake than the one that was allowed")]
    Name,
    #[error("the guest offers a protocol other than HTTP, and a header rule or secret for this host needs HTTP")]
    NotHttp,
    #[error("the server chose a protocol that the guest did not offer")]
    Chosen,
    #[error("{0}")]
    Unusable(String),
    #[error("a header rule or secret is for this host, and the sandbox has no certificate authority")]
    NoAuthority,
    #[error("cannot make a certificate for the guest: {0}")]
    Leaf(#[from] LeafError),
    #[error("cannot read whom to trust: {0}")]
    Trust(#[source] io::Error),
    #[error("cannot begin TLS with the server: {0}")]
    Server(#[source] io::Error),
    #[error("the guest did not accept the certificate of the sandbox's authority, or gave up: {0}")]
    NotAccepted(#[source] io::Error),
    #[error("the name is not one of DNS")]
    NotDns(#[from] InvalidDnsNameError),
}

/// Both ends after their handshakes.
pub(super) struct Shaken<G, U> {
    pub guest: server::TlsStream<G>,
    pub upstream: client::TlsStream<U>,
    pub protocol: Protocol,
}

/// Does both handshakes. A guest that is refused gets an alert of TLS.
pub(super) async fn shake<G, U>(
    guest: G,
    upstream: U,
    name: &DomainName,
    credentials: &Credentials,
    trust: &Trust,
) -> Result<Shaken<G, U>, HandshakeError>
where
    G: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let hello = timeout(WITHIN, LazyConfigAcceptor::new(Acceptor::default(), guest)).await?;
    let hello = hello.map_err(HandshakeError::Guest)?;
    match shake_upstream(&hello.client_hello(), upstream, name, credentials, trust).await {
        Ok((upstream, protocol, leaf)) => {
            let guest = timeout(WITHIN, hello.into_stream(Arc::new(configuration(leaf, protocol)?))).await?;
            Ok(Shaken { guest: guest.map_err(HandshakeError::NotAccepted)?, upstream, protocol })
        }
        Err(error) => {
            refuse(hello).await;
            Err(error)
        }
    }
}

async fn shake_upstream<U>(
    hello: &ClientHello<'_>,
    upstream: U,
    name: &DomainName,
    credentials: &Credentials,
    trust: &Trust,
) -> Result<(client::TlsStream<U>, Protocol, Arc<CertifiedKey>), HandshakeError>
where
    U: AsyncRead + AsyncWrite + Unpin,
{
    // The name was read by another reader before: both have to see the same.
    let shown: Option<Result<DomainName, NameError>> = hello.server_name().map(str::parse);
    if shown != Some(Ok(name.clone())) {
        return Err(HandshakeError::Name);
    }
    if let Some(reason) = credentials.unusable(name) {
        return Err(HandshakeError::Unusable(reason));
    }
    let leaf = credentials.leaves().ok_or(HandshakeError::NoAuthority)?.leaf(name)?;
    let offered = offered(hello)?;
    let server = ServerName::try_from(name.as_str().to_owned())?;
    let client = trust.client(offered.clone()).map_err(HandshakeError::Trust)?;
    let upstream = timeout(WITHIN, TlsConnector::from(client).connect(server, upstream)).await?;
    let upstream = upstream.map_err(HandshakeError::Server)?;
    let protocol = match upstream.get_ref().1.alpn_protocol() {
        Some(H2) => Protocol::Http2,
        Some(HTTP_1) | None => Protocol::Http1,
        Some(_) => return Err(HandshakeError::Chosen),
    };
    let is_offered = |protocol: &[u8]| offered.is_empty() || offered.iter().any(|offer| offer == protocol);
    if protocol == Protocol::Http1 && !is_offered(HTTP_1) {
        return Err(HandshakeError::Chosen);
    }
    Ok((upstream, protocol, leaf))
}

/// Returns what to offer the server: the versions of HTTP that the guest offers. None if it offers nothing.
fn offered(hello: &ClientHello<'_>) -> Result<Vec<Vec<u8>>, HandshakeError> {
    let Some(guest) = hello.alpn() else { return Ok(Vec::new()) };
    let offered: Vec<_> = guest.filter(|protocol| [H2, HTTP_1].contains(protocol)).map(<[u8]>::to_vec).collect();
    if offered.is_empty() { Err(HandshakeError::NotHttp) } else { Ok(offered) }
}

fn configuration(leaf: Arc<CertifiedKey>, protocol: Protocol) -> Result<ServerConfig, HandshakeError> {
    let mut server = unresumable(Arc::new(Always(leaf)))?;
    server.alpn_protocols = vec![match protocol {
        Protocol::Http1 => HTTP_1.to_vec(),
        Protocol::Http2 => H2.to_vec(),
    }];
    Ok(server)
}

/// Returns a configuration that keeps nothing of a guest's sessions.
fn unresumable(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, HandshakeError> {
    let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| HandshakeError::Guest(io::Error::other(error)))?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

/// Ends a handshake with the alert `access_denied`.
async fn refuse<G: AsyncRead + AsyncWrite + Unpin>(hello: StartHandshake<G>) {
    if let Ok(server) = unresumable(Arc::new(Never)) {
        // It fails, which is its purpose.
        let _ = timeout(REFUSE_WITHIN, hello.into_stream(Arc::new(server))).await;
    }
}

/// One certificate, whatever is asked for.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// No certificate, so that the handshake fails.
#[derive(Debug)]
struct Never;

impl ResolvesServerCert for Never {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}
