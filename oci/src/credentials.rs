//! Where credentials of registries come from: a file of this project, then docker's configuration.
//! Reading docker's, and running its credential helpers, is the crate docker_credential's. May
//! write no file that another user can read.

use crate::{reference::Reference, registry::Credentials};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

/// Maximum size in bytes of a file of credentials.
const MAX_FILE: u64 = 1 << 20;

/// Credentials cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// Verb of the operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file, or the answer of a credential helper, is not readable.
    #[error("cannot read the credentials of {host} from {}: {problem}", .path.display())]
    Unreadable {
        /// The registry.
        host: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The files in which credentials are looked for, in this order.
#[derive(Debug, Clone)]
pub struct CredentialFiles {
    /// The file that [`Self::login`] writes.
    pub own: PathBuf,
    /// Docker's `config.json`, if it is to be read.
    pub docker: Option<PathBuf>,
}

#[derive(Default, Serialize, Deserialize)]
struct Own {
    registries: BTreeMap<String, Login>,
}

#[derive(Serialize, Deserialize)]
struct Login {
    user: String,
    password: String,
}

impl CredentialFiles {
    /// Returns the credentials for a registry, or `None` if no file has any. May run a credential
    /// helper of docker, and blocks the thread meanwhile.
    ///
    /// # Errors
    /// Fails if a file that exists cannot be read, or if the helper fails.
    pub fn find(&self, registry: &str) -> Result<Option<Credentials>, CredentialsError> {
        if let Some(Login { user, password }) = self.read(registry)?.registries.remove(registry) {
            return Ok(Some(Credentials::Password { user, password }));
        }
        let Some(path) = &self.docker else { return Ok(None) };
        let file = match File::open(path) {
            Ok(file) => file.take(MAX_FILE),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CredentialsError::Io { what: "read", path: path.clone(), source }),
        };
        match docker_credential::get_credential_from_reader(file, &docker_key(registry)) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                Ok(Some(Credentials::Password { user, password }))
            }
            Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credentials::IdentityToken(token))),
            Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
            // Helpers report with this that they have none.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("not found") => Ok(None),
            // The output of a helper may contain a secret.
            Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
                Err(unreadable(registry, path, format!("{helper} failed")))
            }
            Err(error) => Err(unreadable(registry, path, error.to_string())),
        }
    }

    /// Records credentials for a registry, in a file with mode 0600.
    ///
    /// # Errors
    /// Fails if the file cannot be read or written.
    pub fn login(&self, registry: &str, user: &str, password: &str) -> Result<(), CredentialsError> {
        let mut own = self.read(registry)?;
        own.registries.insert(registry.to_owned(), Login { user: user.to_owned(), password: password.to_owned() });
        self.write(&own)
    }

    /// Removes the credentials for a registry. Returns false if there are none.
    ///
    /// # Errors
    /// Fails if the file cannot be read or written.
    pub fn logout(&self, registry: &str) -> Result<bool, CredentialsError> {
        let mut own = self.read(registry)?;
        let removed = own.registries.remove(registry).is_some();
        if removed {
            self.write(&own)?;
        }
        Ok(removed)
    }

    fn read(&self, registry: &str) -> Result<Own, CredentialsError> {
        let mut bytes = Vec::new();
        match File::open(&self.own).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
            Ok(_) => serde_json::from_slice(&bytes).map_err(|error| unreadable(registry, &self.own, error.to_string())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Own::default()),
            Err(source) => Err(CredentialsError::Io { what: "read", path: self.own.clone(), source }),
        }
    }

    fn write(&self, own: &Own) -> Result<(), CredentialsError> {
        let fail = |source| CredentialsError::Io { what: "write", path: self.own.clone(), source };
        let new = self.own.with_extension(format!("{}.new", std::process::id()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = || {
            let mut file = File::from(rustix::fs::openat(CWD, &new, flags, Mode::RUSR | Mode::WUSR)?);
            file.write_all(&serde_json::to_vec_pretty(own)?)?;
            file.sync_all()?;
            std::fs::rename(&new, &self.own)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&new);
            fail(error)
        })
    }
}

/// Returns the key under which docker keeps credentials of a registry: its name, but for the
/// default registry a URL.
fn docker_key(registry: &str) -> String {
    let default = "x".parse::<Reference>().ok();
    match default.filter(|default| default.registry() == registry) {
        Some(default) => format!("https://{}/v1/", default.host()),
        None => registry.to_owned(),
    }
}

fn unreadable(host: &str, path: &Path, problem: String) -> CredentialsError {
    CredentialsError::Unreadable { host: host.to_owned(), path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn own_login_precedes_docker_and_is_private() {
        let home = tempfile::tempdir().unwrap();
        let files =
            CredentialFiles { own: home.path().join("own.json"), docker: Some(home.path().join("config.json")) };
        assert_eq!(files.find("registry.example").unwrap(), None);
        // "docker:secret" in base64.
        let docker = r#"{"auths": {"registry.example": {"auth": "ZG9ja2VyOnNlY3JldA=="}}}"#;
        std::fs::write(home.path().join("config.json"), docker).unwrap();
        assert_eq!(files.find("registry.example").unwrap(), password("docker", "secret"));
        files.login("registry.example", "own", "other").unwrap();
        assert_eq!(files.find("registry.example").unwrap(), password("own", "other"));
        assert_eq!(files.find("other.example").unwrap(), None);
        assert_eq!(files.own.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(files.logout("registry.example").unwrap() && !files.logout("registry.example").unwrap());
        assert_eq!(files.find("registry.example").unwrap(), password("docker", "secret"));
    }
}
