//! TLS of the listeners: a certificate and its key, which the launcher reads from PEM files when the server starts.

use crate::config::TlsFiles;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

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
pub(crate) struct Tls(pub(super) TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl TlsFiles {
    /// Reads certificate chain and key, and checks that they can be used.
    pub(crate) fn read(&self) -> Result<(String, String), TlsError> {
        let failed =
            |problem: String| TlsError { certificate: self.certificate.clone(), key: self.key.clone(), problem };
        let read = |path: &Path| fs::read_to_string(path).map_err(|error| failed(error.to_string()));
        let (chain, key) = (read(&self.certificate)?, read(&self.key)?);
        Tls::new(&chain, &key).map_err(failed)?;
        Ok((chain, key))
    }
}

impl Tls {
    /// From PEM. Fails with the problem if certificate and key cannot be used.
    pub(crate) fn new(chain: &str, key: &str) -> Result<Self, String> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| error.to_string())?;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}
