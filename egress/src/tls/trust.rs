//! Whose certificates are accepted of servers whose TLS is ended: those of the authorities in files that the supervisor
//! opened. A sandbox that never has TLS ended does not read them.

use std::{
    cell::{OnceCell, RefCell},
    fs::File,
    io::{self, Read},
    sync::Arc,
};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Maximum size in bytes of all files. A host's list has about 220 KiB.
const MAX_SIZE: u64 = 4 << 20;

/// Maximum number of TLS sessions that are kept to be resumed.
const SESSIONS: usize = 32;

/// The authorities that sign the certificates of servers.
#[derive(Debug, Default)]
pub struct Trust {
    /// They are read once, and closed.
    files: RefCell<Vec<File>>,
    client: OnceCell<Arc<ClientConfig>>,
}

impl Trust {
    /// Returns the authorities in `files`, as PEM. Certificates that cannot be read are left out.
    #[must_use]
    pub fn new(files: Vec<File>) -> Self {
        Self { files: RefCell::new(files), client: OnceCell::new() }
    }

    /// Returns the configuration of a client that verifies its server's certificate, and offers these protocols.
    ///
    /// # Errors
    /// When a file cannot be read, or TLS cannot be configured.
    pub fn client(&self, protocols: Vec<Vec<u8>>) -> io::Result<Arc<ClientConfig>> {
        let base = match self.client.get() {
            Some(client) => client,
            None => {
                let client = Arc::new(configuration(self.roots()?)?);
                self.client.get_or_init(|| client)
            }
        };
        let mut client = ClientConfig::clone(base);
        client.alpn_protocols = protocols;
        Ok(Arc::new(client))
    }

    fn roots(&self) -> io::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for file in self.files.take() {
            let mut pem = Vec::new();
            file.take(MAX_SIZE).read_to_end(&mut pem)?;
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
        }
        Ok(roots)
    }
}

fn configuration(roots: RootCertStore) -> io::Result<ClientConfig> {
    let mut client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(client)
}
