//! `network.secrets`: the values of secrets and header rules, which only the egress process gets, and
//! the password of the upstream proxy, which only the dialer gets.
//!
//! Values that were given inline are kept there, mode 0600, together with the key of the sandbox's
//! certificate authority, because an egress process that replaces another one reads them again. The
//! file is overwritten before it is removed.

use super::access_key::{self, SecretKind};
use super::{HeaderRuleSpec, MAX_VALUE, SecretSpec, SecretText, ValueSource, problem};
use crate::{
    home::directory::{DirectoryError, NETWORK_SECRETS as FILE, SandboxDirectory},
    record::RecordError,
};
use rustix::{
    fs::OFlags,
    rand::{GetRandomFlags, getrandom},
};
use sandboxvm_authority::{Authority, AuthorityError};
use sandboxvm_protocol::egress::{AuthorityKey, HeaderRule, HeaderTemplate, SecretValue};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read, Write},
    path::Path,
};

/// The key of the password of the proxy.
const OF_PROXY: &str = "the password of the proxy";
/// The placeholder of a header whose value cannot be read, which no guest has.
const NO_PLACEHOLDER: &str = "sandboxvm-header-without-a-placeholder";
/// Maximum size of the file in bytes: [`MAX_SECRETS`](super::MAX_SECRETS) secrets and the headers of all rules.
const MAX_FILE: u64 = 1 << 20;

/// The values and the authority of a sandbox.
#[derive(Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    #[serde(default)]
    values: BTreeMap<String, String>,
    #[serde(default)]
    authority: Option<KeptAuthority>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptAuthority {
    key: String,
    certificate: String,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("values", &self.values.keys()).finish_non_exhaustive()
    }
}

/// Why secrets cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The authority cannot be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A value is to stay as it is, and none was given before.
    #[error("no value was given for {0}")]
    NoValue(String),
    /// The record or the values cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Random bytes cannot be had.
    #[error("cannot get random bytes: {0}")]
    Random(#[source] io::Error),
}

/// The parts of a network whose values are kept.
pub(crate) struct Parts<'p> {
    pub(crate) secrets: &'p mut Vec<SecretSpec>,
    pub(crate) header_rules: &'p mut Vec<HeaderRuleSpec>,
    pub(crate) proxy_password: Option<&'p mut ValueSource>,
}

impl Kept {
    /// Reads what is kept of a sandbox.
    pub(crate) fn read(directory: &SandboxDirectory) -> Result<Self, RecordError> {
        let json = match directory.read(FILE, MAX_FILE) {
            Ok(json) => json,
            Err(error) if error.is_not_found() => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(&json)
            .map_err(|source| RecordError::Damaged { path: directory.path().join(FILE), source })
    }

    /// Takes the values that are given, and makes placeholders and the authority.
    pub(crate) fn take(&mut self, parts: Parts<'_>) -> Result<(), SecretsError> {
        let Parts { secrets, header_rules, proxy_password } = parts;
        if self.authority.is_none() && !(secrets.is_empty() && header_rules.is_empty()) {
            let authority = Authority::generate()?;
            self.authority = Some(KeptAuthority { key: authority.key(), certificate: authority.certificate()? });
        }
        let mut kept = BTreeMap::new();
        for secret in secrets.iter_mut() {
            if secret.placeholder.is_empty() {
                secret.placeholder = placeholder()?;
            }
            self.take_value(of_secret(&secret.name), &mut secret.value, &mut kept)?;
        }
        for rule in header_rules.iter_mut() {
            for header in &mut rule.headers {
                self.take_value(of_header(&rule.host, &header.name), &mut header.value, &mut kept)?;
            }
        }
        if let Some(source) = proxy_password {
            self.take_value(OF_PROXY.to_owned(), source, &mut kept)?;
        }
        self.values.append(&mut kept);
        Ok(())
    }

    /// Drops the values that are not referred to.
    pub(crate) fn retain(
        &mut self,
        secrets: &[SecretSpec],
        header_rules: &[HeaderRuleSpec],
        proxy_password: Option<&ValueSource>,
    ) {
        let of_rules = header_rules.iter().flat_map(|rule| rule.headers.iter().map(|header| (&rule.host, header)));
        let keys: Vec<String> = secrets
            .iter()
            .map(|secret| (of_secret(&secret.name), &secret.value))
            .chain(of_rules.map(|(host, header)| (of_header(host, &header.name), &header.value)))
            .chain(proxy_password.map(|source| (OF_PROXY.to_owned(), source)))
            .filter_map(|(key, source)| source.kept_under(&key))
            .collect();
        self.values.retain(|key, _| keys.contains(key));
    }

    fn take_value(
        &mut self,
        key: String,
        source: &mut ValueSource,
        kept: &mut BTreeMap<String, String>,
    ) -> Result<(), SecretsError> {
        if let ValueSource::Given(SecretText(value)) = source {
            let value = std::mem::take(value);
            *source = self.source_of(&key, &value)?;
            kept.insert(source.kept_under(&key).unwrap_or(key), value);
        } else if let Some(under) = source.kept_under(&key)
            && !self.values.contains_key(&under)
        {
            return Err(SecretsError::NoValue(key));
        }
        Ok(())
    }

    /// Returns where a value is to be kept: where the same one is, or where none is. The number is random,
    /// so that of two changes at the same time none gets the value of the other.
    fn source_of(&self, key: &str, value: &str) -> Result<ValueSource, SecretsError> {
        let before = self.values.get(key);
        if before.is_some_and(|before| before == value) {
            return Ok(ValueSource::Kept);
        }
        let prefix = format!("{key} #");
        let same = self.values.iter().filter(|(_, kept)| *kept == value);
        if let Some(number) = same.filter_map(|(key, _)| key.strip_prefix(&prefix)?.parse().ok()).next() {
            return Ok(ValueSource::KeptAs(number));
        }
        if before.is_none() {
            return Ok(ValueSource::Kept);
        }
        let mut random = [0_u8; 4];
        getrandom(&mut random[..], GetRandomFlags::empty()).map_err(|error| SecretsError::Random(error.into()))?;
        Ok(ValueSource::KeptAs(u32::from_le_bytes(random)))
    }

    /// Writes it into the directory of a sandbox. Without content there is no file.
    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), DirectoryError> {
        let before = directory.read(FILE, MAX_FILE);
        let json = serde_json::to_vec(self).map_err(|error| directory.error("write", FILE, error))?;
        if before.as_ref().is_ok_and(|before| *before == json) {
            return Ok(());
        }
        let before = directory.open_file(FILE, OFlags::WRONLY);
        if *self == Self::default() {
            directory.unlink(FILE)?;
        } else {
            directory.replace(FILE, &json)?;
        }
        if let Ok(before) = before {
            overwrite(before);
        }
        Ok(())
    }

    /// Returns the certificate of the sandbox's authority as PEM, if it has one.
    pub(crate) fn certificate(&self) -> Option<&str> {
        self.authority.as_ref().map(|authority| authority.certificate.as_str())
    }

    pub(crate) fn authority(&self) -> Option<AuthorityKey> {
        self.authority.as_ref().map(|authority| AuthorityKey(authority.key.clone()))
    }

    /// Returns the secrets of an egress process. What cannot be read is an error in it.
    pub(crate) fn secrets(&self, secrets: &[SecretSpec]) -> Vec<SecretValue> {
        let secret = |secret: &SecretSpec| SecretValue {
            name: secret.name.clone(),
            placeholder: secret.placeholder.clone(),
            hosts: secret.hosts.clone(),
            value: self.value_of(secret),
        };
        secrets.iter().map(secret).collect()
    }

    /// Returns the header rule of an egress process.
    ///
    /// # Errors
    /// What refuses its hosts, if a value cannot be read.
    pub(crate) fn header_rule(&self, rule: &HeaderRuleSpec) -> Result<HeaderRule, SecretValue> {
        let headers = rule.headers.iter().map(|header| {
            let key = of_header(&rule.host, &header.name);
            match self.value(&key, &header.value) {
                Ok(value) => Ok(HeaderTemplate { name: header.name.clone(), value }),
                Err(reason) => Err(SecretValue {
                    name: key,
                    placeholder: NO_PLACEHOLDER.to_owned(),
                    hosts: vec![rule.host.clone()],
                    value: Err(reason),
                }),
            }
        });
        Ok(HeaderRule { host: rule.host.clone(), headers: headers.collect::<Result<_, _>>()? })
    }

    /// Returns the password of the proxy.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(crate) fn proxy_password(&self, source: &ValueSource) -> Result<String, String> {
        self.value(OF_PROXY, source)
    }

    fn value_of(&self, secret: &SecretSpec) -> Result<String, String> {
        match (&secret.kind, &secret.value) {
            (SecretKind::AccessKey { profile }, ValueSource::File(path)) => {
                access_key::from_file(path, profile).map_err(|error| format!("{}: {error}", path.display()))
            }
            _ => self.value(&of_secret(&secret.name), &secret.value),
        }
    }

    fn value(&self, key: &str, source: &ValueSource) -> Result<String, String> {
        match source {
            ValueSource::Given(SecretText(value)) => Ok(value.clone()),
            ValueSource::File(path) => from_file(path).map_err(|error| format!("{}: {error}", path.display())),
            ValueSource::Kept | ValueSource::KeptAs(_) => {
                let kept = source.kept_under(key).and_then(|key| self.values.get(&key));
                kept.cloned().ok_or_else(|| "its value was not kept".to_owned())
            }
        }
    }
}

/// Overwrites what is kept, before it is removed. A file system that writes elsewhere keeps the old
/// bytes until it needs the room.
pub(crate) fn wipe(directory: &SandboxDirectory) {
    if let Ok(file) = directory.open_file(FILE, OFlags::WRONLY) {
        overwrite(file);
    }
}

fn overwrite(mut file: fs::File) {
    let len = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_FILE);
    // The file is removed in any case.
    let zeros = vec![0; usize::try_from(len).unwrap_or(0)];
    let _ = file.write_all(&zeros).and_then(|()| file.sync_data());
}

fn of_secret(name: &str) -> String {
    format!("secret {name}")
}

fn of_header(host: &str, name: &str) -> String {
    format!("header {name} of {host}")
}

fn from_file(path: &Path) -> io::Result<String> {
    let mut value = String::new();
    let max = u64::try_from(MAX_VALUE).unwrap_or(u64::MAX) + 2;
    fs::File::open(path)?.take(max).read_to_string(&mut value)?;
    let value = value.strip_suffix('\n').map_or(value.as_str(), |value| value.strip_suffix('\r').unwrap_or(value));
    problem(value).map_or_else(|| Ok(value.to_owned()), |problem| Err(io::Error::other(problem)))
}

/// Returns a placeholder. It is in lower case and has no character that an encoding changes.
fn placeholder() -> Result<String, SecretsError> {
    let mut random = [0_u8; 16];
    getrandom(&mut random[..], GetRandomFlags::empty()).map_err(|error| SecretsError::Random(error.into()))?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sandboxvm-secret-{hex}"))
}

#[cfg(test)]
mod tests {
    use super::super::HeaderSpec;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const VALUE: &str = "sk-very-secret";

    fn secret(name: &str, value: ValueSource) -> SecretSpec {
        SecretSpec {
            name: name.into(),
            hosts: vec!["api.example".into()],
            placeholder: String::new(),
            value,
            kind: SecretKind::Text,
        }
    }

    fn given(value: &str) -> ValueSource {
        ValueSource::Given(SecretText::new(value.into()))
    }

    #[test]
    fn values_are_kept_apart_and_read_again() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let file = home.path().join("token");
        fs::write(&file, "from-a-file\n").unwrap();
        let mut secrets = vec![secret("A", given(VALUE)), secret("B", ValueSource::File(file.clone()))];
        let mut header_rules = vec![HeaderRuleSpec {
            host: "api.example".into(),
            headers: vec![HeaderSpec { name: "X-Key".into(), value: given("of the rule") }],
        }];
        let mut password = given("of the proxy");
        let mut kept = Kept::read(&directory).unwrap();
        kept.take(Parts {
            secrets: &mut secrets,
            header_rules: &mut header_rules,
            proxy_password: Some(&mut password),
        })
        .unwrap();
        kept.write(&directory).unwrap();
        let shown = format!("{secrets:?} {header_rules:?} {kept:?} {}", serde_json::to_string(&secrets).unwrap());
        assert!(!shown.contains(VALUE) && !shown.contains("of the rule"), "{shown}");
        let path = directory.path().join(FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        let again = Kept::read(&directory).unwrap();
        let values: Vec<_> = again.secrets(&secrets).into_iter().map(|secret| secret.value).collect();
        assert_eq!(values, [Ok(VALUE.to_owned()), Ok("from-a-file".to_owned())]);
        assert_eq!(again.header_rule(&header_rules[0]).unwrap().headers[0].value, "of the rule");
        assert_eq!(
            (password, again.proxy_password(&ValueSource::Kept)),
            (ValueSource::Kept, Ok("of the proxy".into()))
        );
        assert!(secrets[0].placeholder.len() > 32 && secrets[0].placeholder != secrets[1].placeholder);
        fs::remove_file(&file).unwrap();
        assert!(again.secrets(&secrets)[1].value.as_ref().unwrap_err().contains("No such file"));

        // A change keeps what it refers to, and drops the rest.
        let (certificate, placeholder) = (again.certificate().unwrap().to_owned(), secrets[0].placeholder.clone());
        let mut changed = Kept::read(&directory).unwrap();
        changed.take(Parts { secrets: &mut secrets, header_rules: &mut Vec::new(), proxy_password: None }).unwrap();
        changed.retain(&secrets, &[], None);
        changed.write(&directory).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(VALUE) && !text.contains("of the rule") && !text.contains("of the proxy"));
        assert_eq!((changed.certificate().unwrap(), &secrets[0].placeholder), (certificate.as_str(), &placeholder));
        let mut missing = vec![secret("C", ValueSource::Kept)];
        let missing =
            changed.take(Parts { secrets: &mut missing, header_rules: &mut Vec::new(), proxy_password: None });
        assert_eq!(missing.unwrap_err().to_string(), "no value was given for secret C");
        wipe(&directory);
        assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    }
}
