//! Where credentials of registries come from: a file of this project, then docker's configuration.
//! May write no file that another user can read, and may put nothing that a file contains into an
//! error.

mod docker;
mod helper;

use crate::registry::Credentials;
use docker::{DockerConfig, Place};
use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::DirBuilderExt,
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
    /// helper of docker, and blocks the thread meanwhile, at most 60 seconds.
    ///
    /// # Errors
    /// Fails if a file that exists cannot be read, or if the helper fails.
    pub fn find(&self, registry: &str) -> Result<Option<Credentials>, CredentialsError> {
        if let Some(Login { user, password }) = self.read(registry)?.registries.remove(registry) {
            return Ok(Some(Credentials::Password { user, password }));
        }
        let Some(path) = &self.docker else { return Ok(None) };
        let Some(config) = read::<DockerConfig>(path, registry)? else { return Ok(None) };
        let fail = |problem: &str| unreadable(registry, path, problem.to_owned());
        match config.place(registry).map_err(fail)? {
            Some(Place::File(credentials)) => Ok(Some(credentials)),
            Some(Place::Helper { name, address }) => {
                let program = helper::program(&name).map_err(|problem| fail(&problem))?;
                helper::get(program.as_ref(), &address, helper::TIME).map_err(|problem| fail(&problem))
            }
            None => Ok(None),
        }
    }

    /// Records credentials for a registry, in a file with mode 0600. A directory that is missing is created for
    /// this user alone.
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
        Ok(read(&self.own, registry)?.unwrap_or_default())
    }

    fn write(&self, own: &Own) -> Result<(), CredentialsError> {
        let fail = |source| CredentialsError::Io { what: "write", path: self.own.clone(), source };
        let new = self.own.with_extension(format!("{}.new", std::process::id()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = || {
            if let Some(directory) = new.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            }
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

/// Reads a file, or returns `None` if it does not exist.
fn read<T: DeserializeOwned>(path: &Path, registry: &str) -> Result<Option<T>, CredentialsError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CredentialsError::Io { what: "read", path: path.to_owned(), source }),
    }
    let parsed = serde_json::from_slice(&bytes);
    // The error itself may quote a secret.
    parsed.map(Some).map_err(|error| unreadable(registry, path, format!("it is not valid at line {}", error.line())))
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
            CredentialFiles { own: home.path().join("new/own.json"), docker: Some(home.path().join("config.json")) };
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
    #[test]
    fn errors_name_the_file_and_quote_nothing_of_it() {
        let home = tempfile::tempdir().unwrap();
        let docker = home.path().join("config.json");
        let files = CredentialFiles { own: home.path().join("own.json"), docker: Some(docker.clone()) };
        let auth = |auth: &str| format!("{{\"auths\": {{\"registry.example\": {{\"auth\": {auth}}}}}}}");
        for text in [
            "{",
            &auth("\"secret\""),
            &auth("[\"secret\"]"),
            "{\"auths\": \"secret\"}",
            "{\"credsStore\": \"../secret\"}",
        ] {
            std::fs::write(&docker, text).unwrap();
            let error = files.find("registry.example").unwrap_err().to_string();
            assert!(error.contains(&docker.display().to_string()) && !error.contains("secret"), "{error}");
        }
        std::fs::write(&docker, "{\"credsStore\": \"sandboxvm-test-missing\"}").unwrap();
        let error = files.find("registry.example").unwrap_err().to_string();
        assert!(error.contains("cannot start docker-credential-sandboxvm-test-missing"), "{error}");
        std::fs::write(&files.own, "{\"registries\": \"secret\"}").unwrap();
        let error = files.find("registry.example").unwrap_err().to_string();
        assert!(error.contains("own.json") && !error.contains("secret"), "{error}");
    }
}
