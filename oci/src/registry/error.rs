//! Failures of requests to registries.

use crate::{credentials::CredentialsError, digest::Digest, manifest::ManifestError, store::StoreError};
use std::{io, path::PathBuf, time::Duration};

/// A failed request or transfer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry could not be reached, or the connection broke.
    #[error("cannot reach {host}: {problem}")]
    Unreachable {
        /// The host.
        host: String,
        /// Why it failed.
        problem: String,
    },
    /// The caller's rules forbid every address of the host.
    #[error("cannot reach {0}: its address is not allowed")]
    NotAllowed(String),
    /// A file of certificates cannot be used.
    #[error("cannot read the certificates in {}: {source}", .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A URL from a registry, or a host from the user, cannot be used.
    #[error("invalid address {0:?}")]
    Address(String),
    /// A registry redirects or refers to a host without TLS.
    #[error("refused to contact {0} without TLS")]
    NotEncrypted(String),
    /// More redirects than 5.
    #[error("{0} redirects too often")]
    Redirects(String),
    /// The registry rejects the credentials, or wants some.
    #[error("{host} denies access to {what}: {}", if *.with_credentials { "the credentials are not valid for it" } else { "no credentials are known" })]
    Denied {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
        /// Whether credentials were sent.
        with_credentials: bool,
    },
    /// The credentials of the host cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The registry does not have it.
    #[error("{host} does not have {what}")]
    NotFound {
        /// The registry.
        host: String,
        /// What was requested.
        what: String,
    },
    /// Another status than expected.
    #[error("{host} answers {status} to the request for {what}")]
    Status {
        /// The registry.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What was requested.
        what: String,
    },
    /// An answer that the distribution specification does not allow.
    #[error("invalid answer of {host}: {problem}")]
    Answer {
        /// The registry.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// Content does not have the digest under which it was requested, or the registry states
    /// another one for what it was sent.
    #[error("invalid content of {host}: its digest is {actual}, expected {expected}")]
    WrongDigest {
        /// The registry.
        host: String,
        /// The requested digest.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
    },
    /// A pull or push exceeded its total time.
    #[error("the transfer took longer than {} seconds", .0.as_secs())]
    Deadline(Duration),
    /// A downloaded file cannot be written.
    #[error("cannot write the file: {0}")]
    Output(#[source] io::Error),
    /// A manifest is not accepted.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RegistryError {
    /// Returns true if the same request may succeed at another time or from another host.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Returns true if the fault is of this host, so that another one may be asked.
    pub(crate) fn is_of_host(&self) -> bool {
        !matches!(self, Self::Store(error) if !matches!(error, StoreError::WrongDigest { .. } | StoreError::WrongSize { .. }))
    }
}
