//! `[images]` of the configuration: from which registries builds of templates may pull, what their commands reach, and what they
//! may take. Without the section builds begin with templates alone, and have no network.

use super::network::{NamedPart, NetworkConfigError, Reachable};
use sandboxvm_egress_policy::floor::Floor;
use sandboxvm_manager::{NetworkSpec, Reach, is_of_this_host};
use sandboxvm_oci::{
    Reference,
    registry::{Reach as RegistryReach, RegistryOptions},
};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, sync::Arc};

/// What builds of templates may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesConfig {
    /// Registries that builds may pull from, as `host` or `host:port`. They may have private addresses; what they redirect to
    /// may not.
    pub registries: Vec<String>,
    /// Whether builds may pull from every registry with a public address.
    pub public: bool,
    /// Registries that are spoken to without TLS, as `host` or `host:port`.
    pub plain_http: Vec<String>,
    /// Registry of names that state none; docker's unless given.
    pub default_registry: Option<String>,
    /// Files with certificates of authorities (PEM) that registries may have, in addition to those of the system.
    pub authorities: Vec<PathBuf>,
    /// Maximum size of all pulled images as they are stored, in MiB; then nothing more is pulled.
    pub storage: u64,
    /// What commands of builds reach.
    pub network: Option<Reachable>,
    /// Builds that run at a time; more wait.
    pub builds: usize,
    /// The share of one key in them.
    pub builds_per_key: usize,
    /// Longest time of a build, in seconds.
    pub build_timeout: u64,
    /// Uploads of files of one key together, in MiB.
    pub uploads_per_key: u64,
    /// States of steps that are kept for one key. The oldest ones are removed.
    pub states_per_key: usize,
    /// Maximum number of vCPUs of a template.
    pub max_cpus: u32,
    /// Maximum memory of a template, in MiB.
    pub max_memory: u64,
    /// Writable disk of a template from an image, in MiB.
    pub disk: u64,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            registries: Vec::new(),
            public: false,
            plain_http: Vec::new(),
            default_registry: None,
            authorities: Vec::new(),
            storage: 32 << 10,
            network: None,
            builds: 2,
            builds_per_key: 1,
            build_timeout: 3600,
            uploads_per_key: 1024,
            states_per_key: 16,
            max_cpus: 2,
            max_memory: 2048,
            disk: 4096,
        }
    }
}

impl ImagesConfig {
    /// Returns the full reference of an image, if builds may pull it.
    ///
    /// # Errors
    /// Fails with a text for the client.
    pub(crate) fn permitted(&self, text: &str) -> Result<Reference, Refused> {
        let reference = Reference::parse(text, self.default_registry.as_deref());
        let reference = reference.map_err(|error| Refused::Invalid(error.to_string()))?;
        if self.public || self.registries.iter().any(|own| own == reference.registry() || own == reference.host()) {
            return Ok(reference);
        }
        let registry = reference.registry();
        Err(Refused::Forbidden(match self.registries.is_empty() {
            true => "the operator of this server permits no registry; use fromTemplate".to_owned(),
            false => format!("the operator of this server does not permit the registry {registry}"),
        }))
    }

    /// Returns how registries are reached.
    pub(crate) fn options(&self) -> RegistryOptions {
        RegistryOptions {
            default_registry: self.default_registry.clone(),
            plain_http: self.plain_http.clone(),
            authorities: self.authorities.clone(),
            reach: Arc::new(AboveFloor { registries: self.registries.clone() }),
            ..RegistryOptions::default()
        }
    }

    /// Returns what commands of builds reach.
    ///
    /// # Errors
    /// When a rule has no meaning.
    pub(crate) fn network(&self) -> Result<NetworkSpec, NetworkConfigError> {
        let (reach, allow) = match &self.network {
            None => (Reach::Nothing, Vec::new()),
            Some(reachable) => reachable.parse("network of [images]")?,
        };
        Ok(NetworkSpec { reach, allow, ..NetworkSpec::default() })
    }
}

impl Default for Reachable {
    fn default() -> Self {
        Self::Named(NamedPart::None)
    }
}

/// Why an image may not be pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Forbidden(String),
}

/// Allows public addresses that are not this host's, and every address of the registries that the operator names.
#[derive(Debug)]
struct AboveFloor {
    registries: Vec<String>,
}

impl RegistryReach for AboveFloor {
    /// Registries may be anywhere above the floor, so their names are asked for first.
    fn may_resolve(&self, _: &str) -> bool {
        true
    }

    fn allows(&self, host: &str, address: SocketAddr) -> bool {
        let with_port = format!("{host}:{}", address.port());
        let is_usual = matches!(address.port(), 80 | 443);
        if self.registries.iter().any(|own| *own == with_port || (is_usual && own == host)) {
            return true;
        }
        Floor::new(Vec::new(), Vec::new()).check(address.ip()).is_ok() && !is_of_this_host(address.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_oci::registry::Anywhere;

    #[test]
    fn no_registry_is_permitted_unless_the_operator_says_so() {
        let refusal = |config: &ImagesConfig, text: &str| config.permitted(text).unwrap_err().to_string();
        let none = ImagesConfig::default();
        assert_eq!(refusal(&none, "python:3.11"), "the operator of this server permits no registry; use fromTemplate");
        let some = ImagesConfig { registries: vec!["localhost:5000".into()], ..ImagesConfig::default() };
        assert_eq!(
            refusal(&some, "localhost:5001/a"),
            "the operator of this server does not permit the registry localhost:5001"
        );
        assert_eq!(some.permitted("localhost:5000/a").unwrap().to_string(), "localhost:5000/a:latest");
        assert!(matches!(some.permitted("a b"), Err(Refused::Invalid(_))));
        let public = ImagesConfig { public: true, ..ImagesConfig::default() };
        assert!(public.permitted("python:3.11").is_ok());
        let default = sandboxvm_oci::Reference::parse("python", None).unwrap().registry().to_owned();
        let docker = ImagesConfig { registries: vec![default], ..ImagesConfig::default() };
        assert!(docker.permitted("python").is_ok());
    }

    #[test]
    fn connections_of_pulls_stay_above_the_floor() {
        let reach = AboveFloor { registries: vec!["localhost:5000".into(), "registry.corp".into()] };
        let allows = |host: &str, address: &str| reach.allows(host, address.parse().unwrap());
        assert!(allows("localhost", "127.0.0.1:5000") && allows("registry.corp", "10.0.0.1:443"));
        assert!(allows("registry.example", "93.184.215.14:443"));
        for (host, address) in [
            ("localhost", "127.0.0.1:5001"),
            ("registry.corp", "10.0.0.1:8443"),
            // A public registry that redirects, or a name that leads elsewhere.
            ("registry.example", "127.0.0.1:5000"),
            ("registry.example", "169.254.169.254:80"),
            ("registry.example", "10.0.0.1:443"),
            ("registry.example", "[::1]:443"),
            ("registry.example", "[::ffff:10.0.0.1]:443"),
            ("registry.example", "[fd00::1]:443"),
        ] {
            assert!(!allows(host, address), "{host} {address}");
            // A pull without the floor connects to it.
            assert!(Anywhere.allows(host, address.parse().unwrap()));
        }
    }
}
