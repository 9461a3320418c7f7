//! TLS to servers in a sandbox that speak it themselves (`https_ports`). Their certificates are not verified: the connection
//! leads into the sandbox by the machine's own means, and a guest's certificate proves nothing.

use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

/// How long a guest's server may take for its part of the handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// What a server is asked for whose name is not one of DNS.
const UNNAMED: &str = "localhost";

/// Begins TLS on a connection to a guest's server; `host` is what its clients call it.
pub(super) async fn begin<S>(stream: S, host: Option<&str>) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let handshake = TlsConnector::from(Arc::new(config)).connect(name(host), stream);
    timeout(HANDSHAKE_WITHIN, handshake).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn name(host: Option<&str>) -> ServerName<'static> {
    let name = host.and_then(|host| host.rsplit_once(':').map_or(Some(host), |(name, _)| Some(name)));
    let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
    name.unwrap_or_else(|| ServerName::try_from(UNNAMED).expect("a name of DNS"))
}

/// Takes every certificate, and verifies that the server has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_for_by_the_name_of_its_clients() {
        let of = |host| name(host).to_str().into_owned();
        assert_eq!(of(Some("3000-abcdefgh.example.test")), "3000-abcdefgh.example.test");
        assert_eq!(of(Some("app.example.test:8443")), "app.example.test");
        assert_eq!(
            (of(Some("127.0.0.1:3002")), of(Some("${}")), of(None)),
            ("127.0.0.1".into(), UNNAMED.into(), UNNAMED.into())
        );
    }
}
