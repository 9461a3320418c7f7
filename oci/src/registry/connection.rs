//! One connection for one request: resolved name, allowed address, TLS if wanted, HTTP/1.1.

use super::{RegistryOptions, error::RegistryError, target::Target};
use crate::manifest::printable;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{fs, io, net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

/// Time for resolving a name, connecting and the TLS handshake, each.
const CONNECT: Duration = Duration::from_secs(15);
/// Time for all addresses of a name together.
const CONNECT_ALL: Duration = Duration::from_secs(60);
/// Maximum size in bytes of a file of certificates.
const MAX_CERTIFICATES: u64 = 8 << 20;

/// The body of a request.
pub(super) type Body = BoxBody<Bytes, io::Error>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Returns the TLS configuration that trusts the system's authorities and those of the user.
pub(super) fn tls(options: &RegistryOptions) -> Result<Arc<ClientConfig>, RegistryError> {
    let mut roots = RootCertStore::empty();
    let system = options.system_authorities.iter().filter(|path| path.exists());
    for path in system.chain(&options.authorities) {
        let fail = |source| RegistryError::Certificates { path: path.clone(), source };
        let length = fs::metadata(path).map_err(fail)?.len();
        if length > MAX_CERTIFICATES {
            return Err(fail(io::Error::other("the file is too large")));
        }
        let pem = fs::read(path).map_err(fail)?;
        let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
        if added == 0 {
            return Err(fail(io::Error::other("it contains no certificate")));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| RegistryError::Address(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Sends a request on a new connection and returns the answer's headers. The connection lives as
/// long as the answer's body.
pub(super) async fn send(
    target: &Target,
    request: Request<Body>,
    options: &RegistryOptions,
    tls: &Arc<ClientConfig>,
) -> Result<Response<Incoming>, RegistryError> {
    let fail = |problem: String| RegistryError::Unreachable { host: target.authority(), problem };
    let tcp = timeout(CONNECT_ALL, connect(target, options)).await;
    let tcp = tcp.map_err(|_| fail("connecting timed out".into()))??;
    let stream: Box<dyn Stream> = if target.tls {
        let name = ServerName::try_from(target.host.clone()).map_err(|error| fail(error.to_string()))?;
        // The text may contain names of the certificate.
        let rejected = |error: io::Error| fail(printable(&error.to_string()));
        let connector = TlsConnector::from(tls.clone());
        let handshake = timeout(CONNECT, connector.connect(name, tcp)).await;
        Box::new(handshake.map_err(|_| fail("the TLS handshake timed out".into()))?.map_err(rejected)?)
    } else {
        Box::new(tcp)
    };
    let handshake = http1::Builder::new().max_buf_size(64 << 10).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| fail(error.to_string()))?;
    let task = tokio::spawn(timeout(options.total, connection));
    // Without an answer there is no body whose end would end the connection.
    let guard = AbortOnDrop(Some(task.abort_handle()));
    let answer = sender.send_request(request).await.map_err(|error| fail(error.to_string()))?;
    guard.keep();
    Ok(answer)
}

/// Ends a task when it is dropped.
struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

async fn connect(target: &Target, options: &RegistryOptions) -> Result<TcpStream, RegistryError> {
    let fail = |problem: String| RegistryError::Unreachable { host: target.authority(), problem };
    if target.host.parse::<IpAddr>().is_err() && !options.reach.may_resolve(&target.host) {
        return Err(RegistryError::NotAllowed(target.authority()));
    }
    let resolved = timeout(CONNECT, lookup_host((target.host.as_str(), target.port))).await;
    let addresses = resolved.map_err(|_| fail("resolving its name timed out".into()))?;
    let mut problem = RegistryError::NotAllowed(target.authority());
    for address in addresses.map_err(|error| fail(error.to_string()))? {
        if !options.reach.allows(&target.host, address) {
            continue;
        }
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => problem = fail(error.to_string()),
            Err(_) => problem = fail("connecting timed out".into()),
        }
    }
    Err(problem)
}
