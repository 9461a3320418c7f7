//! Registries: requests of the distribution specification over HTTP, for pull and push; and files by URL.
//!
//! ```text
//! pull, push ─> client (redirects, credentials) ─┬─> connection (reach, TLS) ─> registry
//! download (redirects) ───────────────────────────┘
//! ```
//! May send the credentials of a registry to no other host than that registry and the token service
//! that it names, and may connect to no address that [`Reach`] forbids. Nothing that a registry
//! sends is trusted: sizes are limited, content is verified by its digest.

mod auth;
mod client;
mod connection;
mod download;
mod error;
mod pace;
mod pull;
mod push;
mod reach;
mod target;
mod token;

pub use auth::Credentials;
pub use download::{Downloaded, download};
pub use error::RegistryError;
pub use reach::{Anywhere, Reach};

pub(crate) use client::{Client, Login};
pub(crate) use pull::Source;

use crate::credentials::CredentialFiles;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Registry of names that state none. `None`: docker's default.
    pub default_registry: Option<String>,
    /// Hosts, as `host` or `host:port`, that are spoken to without TLS.
    pub plain_http: Vec<String>,
    /// Files with certificates of authorities in PEM, in addition to those of the system.
    pub authorities: Vec<PathBuf>,
    /// Files with the certificates of the system's authorities. Those that do not exist are
    /// ignored.
    pub system_authorities: Vec<PathBuf>,
    /// Hosts that are asked before a registry, in this order, by the registry's name.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Where credentials are found that the caller does not state, by the name of the registry or
    /// mirror. Only a host that asks for credentials makes a pull or push read them.
    pub credentials: Option<Arc<CredentialFiles>>,
    /// Decides which addresses may be connected to.
    pub reach: Arc<dyn Reach>,
    /// Number of blobs that are transferred at the same time (1-16). Docker's default is 3.
    pub at_a_time: usize,
    /// Time after which a connection that transfers nothing is closed. A transfer also has to have 1 KiB
    /// per second on average over this time. 30 seconds by default.
    pub idle: Duration,
    /// Time after which a pull or push fails, however it proceeds. 12 hours by default.
    pub total: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            default_registry: None,
            plain_http: Vec::new(),
            authorities: Vec::new(),
            system_authorities: vec![PathBuf::from("/etc/ssl/certs/ca-certificates.crt")],
            mirrors: BTreeMap::new(),
            credentials: None,
            reach: Arc::new(Anywhere),
            at_a_time: 3,
            idle: Duration::from_secs(30),
            total: Duration::from_secs(12 * 3600),
        }
    }
}
