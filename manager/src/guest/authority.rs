//! Makes programs in the guest trust the sandbox's certificate authority, and know the placeholders of
//! its secrets: a certificate in the guest's list, and variables for programs that have separate
//! lists. It happens before a process is started, because only processes need it, and costs nothing in a
//! sandbox without secrets and header rules.

use crate::{
    guest::{error::ExecError, files::FileError},
    home::directory::{DirectoryError, SandboxDirectory},
    network::{
        record::NetworkRecord,
        secrets::{Kept, SecretSpec},
    },
    record::RecordError,
    sandbox::Sandbox,
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::agent::files::{FileErrorKind, FilePath};

/// The certificate alone, where tools that build a guest's list find it as well.
const CERTIFICATE: &str = "/usr/local/share/ca-certificates/sandboxvm.crt";
/// The guest's list, where most distributions have it.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Maximum size of the guest's list in bytes. A larger one is replaced.
const MAX_BUNDLE: usize = 4 << 20;
/// Says of which authority the guest has the certificate.
const MARK: &str = "network.trusted";

/// Variables with a list of all authorities.
const OF_BUNDLE: [&str; 8] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
];
/// Variable with authorities in addition to those that the program has.
const OF_CERTIFICATE: &str = "NODE_EXTRA_CA_CERTS";

/// Why the guest does not trust the authority.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    /// The settings of the network cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file of the sandbox cannot be written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file in the guest cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The guest may not have the certificate any more: its disk is another one.
pub(crate) fn forget(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    directory.unlink(MARK)
}

impl Sandbox {
    /// Makes the guest trust the authority, if the sandbox has one. Returns the variables of processes.
    pub(crate) fn trusted_authority(&self) -> BoxFuture<'_, Result<Vec<String>, ExecError>> {
        Box::pin(async move {
            if !self.record.network_card {
                return Ok(Vec::new());
            }
            self.install_authority().await.map_err(|error| match error {
                InstallError::File(FileError::Sandbox(error)) => error,
                error => ExecError::Authority(error.to_string()),
            })
        })
    }

    async fn install_authority(&self) -> Result<Vec<String>, InstallError> {
        let Some(record) = NetworkRecord::read(&self.directory)? else { return Ok(Vec::new()) };
        if record.settings.secrets.is_empty() && record.settings.header_rules.is_empty() {
            return Ok(Vec::new());
        }
        let kept = Kept::read(&self.directory)?;
        let Some(certificate) = kept.certificate() else { return Ok(Vec::new()) };
        let variables = |secret: &SecretSpec| -> Vec<String> {
            secret.variables().map(|name| format!("{name}={}", secret.placeholder)).collect()
        };
        let secrets = record.settings.secrets.iter();
        let mut variables: Vec<String> = secrets.flat_map(variables).collect();
        variables.extend(OF_BUNDLE.iter().map(|name| format!("{name}={BUNDLE}")));
        variables.push(format!("{OF_CERTIFICATE}={CERTIFICATE}"));
        let max = u64::try_from(certificate.len()).unwrap_or(u64::MAX);
        if self.directory.read(MARK, max).is_ok_and(|mark| mark == certificate.as_bytes()) {
            return Ok(variables);
        }
        self.put(CERTIFICATE, certificate.as_bytes()).await?;
        let mut bundle = self.bundle().await?;
        if !bundle.windows(certificate.len()).any(|part| part == certificate.as_bytes()) {
            if !bundle.is_empty() && !bundle.ends_with(b"\n") {
                bundle.push(b'\n');
            }
            bundle.extend_from_slice(certificate.as_bytes());
            self.put(BUNDLE, &bundle).await?;
        }
        self.directory.replace(MARK, certificate.as_bytes())?;
        Ok(variables)
    }

    /// Returns the guest's list, which is empty if there is none.
    async fn bundle(&self) -> Result<Vec<u8>, FileError> {
        let mut stream = match self.files().read(path(BUNDLE)).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == Some(FileErrorKind::NotFound) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut bundle = Vec::new();
        while let Some(part) = stream.next().await? {
            bundle.extend_from_slice(&part);
            if bundle.len() > MAX_BUNDLE {
                return Ok(Vec::new());
            }
        }
        Ok(bundle)
    }

    async fn put(&self, to: &str, bytes: &[u8]) -> Result<(), FileError> {
        let mut sink = self.files().write(path(to), Some(0o644), true).await?;
        sink.write(bytes).await?;
        sink.finish().await.map(drop)
    }
}

fn path(text: &str) -> FilePath {
    FilePath::try_from(text).expect("a constant path")
}
