//! The user's settings for registries: a file, and the credentials of docker and of `image login`.

use crate::{environment, failure::Failure};
use sandboxvm_oci::{Reference, credentials::CredentialFiles, registry::RegistryOptions};
use serde::Deserialize;
use std::{collections::BTreeMap, fs, io::ErrorKind, path::PathBuf, sync::Arc};

/// `registries.toml`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    /// Registry of names without one.
    default_registry: Option<String>,
    /// Files with certificates of authorities.
    authorities: Vec<PathBuf>,
    /// Hosts that are asked before a registry.
    mirrors: BTreeMap<String, Vec<String>>,
}

/// The settings.
#[derive(Debug)]
pub(crate) struct Settings {
    file: File,
    credentials: Option<Arc<CredentialFiles>>,
}

impl Settings {
    pub(crate) fn read() -> Result<Self, Failure> {
        let file = match environment::configuration("registries.toml") {
            None => File::default(),
            Some(path) => match fs::read_to_string(&path) {
                Ok(text) => toml::from_str(&text)
                    .map_err(|error| Failure::new(format_args!("invalid {}: {error}", path.display())))?,
                Err(error) if error.kind() == ErrorKind::NotFound => File::default(),
                Err(error) => return Err(Failure::new(format_args!("cannot read {}: {error}", path.display()))),
            },
        };
        let credentials = environment::configuration("credentials.json")
            .map(|own| Arc::new(CredentialFiles { own, docker: environment::docker_configuration() }));
        Ok(Self { file, credentials })
    }

    /// Parses a reference. A name without a registry belongs to the default one.
    pub(crate) fn reference(&self, text: &str) -> Result<Reference, Failure> {
        Ok(Reference::parse(text, self.file.default_registry.as_deref())?)
    }

    pub(super) fn registries(&self) -> RegistryOptions {
        RegistryOptions {
            default_registry: self.file.default_registry.clone(),
            authorities: self.file.authorities.clone(),
            mirrors: self.file.mirrors.clone(),
            credentials: self.credentials.clone(),
            ..RegistryOptions::default()
        }
    }

    /// Returns the files in which credentials are kept.
    pub(crate) fn credential_files(&self) -> Result<&CredentialFiles, Failure> {
        self.credentials.as_deref().ok_or_else(|| {
            Failure::new("cannot find the directory of configuration files").hinted("set HOME".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_parsed_and_unknown_ones_are_rejected() {
        let text = "default-registry = \"registry.example\"\nauthorities = [\"/ca.pem\"]\n\
                    [mirrors]\n\"registry.example\" = [\"mirror.example:5000\"]\n";
        let file: File = toml::from_str(text).unwrap();
        assert_eq!(file.default_registry.as_deref(), Some("registry.example"));
        assert_eq!(file.mirrors["registry.example"], ["mirror.example:5000"]);
        toml::from_str::<File>("insecure = true").unwrap_err();
    }
}
