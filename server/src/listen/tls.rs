//! TLS of the listeners: a certificate and its key, read from PEM files when the server starts.

use crate::config::TlsFiles;
use std::{fs, path::PathBuf, sync::Arc};
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
