//! Secrets and header rules, as a user asks for them.
//!
//! ```text
//! kept        `network.secrets`: their values, the password of the proxy and the authority's key
//! access_key  secrets that sign requests to AWS
//! ```
//! `network.json` says where each value comes from. No value may reach an argument, the environment
//! of a process, a log or a snapshot.

pub(super) mod access_key;
mod kept;

pub use access_key::SecretKind;
pub use kept::SecretsError;
pub(crate) use kept::{Kept, Parts, wipe};

use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// Maximum number of secrets of a sandbox.
pub const MAX_SECRETS: usize = 16;

/// Maximum length of a secret or a header's value in bytes.
pub const MAX_VALUE: usize = 4096;

/// A secret value. It is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// Wraps an access key of AWS, for [`SecretSpec::access_key`].
    #[must_use]
    pub fn access_key(id: &str, secret: &str, token: Option<&str>) -> Self {
        Self(access_key::joined(id, secret, token))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueSource {
    /// It is given here. It is not written to `network.json`.
    #[serde(skip)]
    Given(SecretText),
    /// It was given before, and is kept with the sandbox.
    Kept,
    /// The same, for the value that replaced another one. That one is kept until a record refers to this
    /// one, so that a change which is refused changes no value.
    KeptAs(u32),
    /// It is the content of this file of the host, without the line end. It is read each time that an
    /// egress process starts.
    File(PathBuf),
}

impl ValueSource {
    /// Returns where the value of `key` is kept, if it is.
    fn kept_under(&self, key: &str) -> Option<String> {
        match self {
            Self::Kept => Some(key.to_owned()),
            Self::KeptAs(number) => Some(format!("{key} #{number}")),
            Self::Given(_) | Self::File(_) => None,
        }
    }
}

/// A secret that the guest knows only by a placeholder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretSpec {
    /// Its name, and that of the guest's environment variable with the placeholder.
    pub name: String,
    /// Hosts to which it may go: `name` or `*.name`. They do not become reachable by it.
    pub hosts: Vec<String>,
    /// What the guest has in its place. Empty for a new secret.
    #[serde(default)]
    pub placeholder: String,
    /// The value.
    pub value: ValueSource,
    /// What it is.
    #[serde(default, skip_serializing_if = "SecretKind::is_text")]
    pub kind: SecretKind,
}

impl SecretSpec {
    /// Returns a new access key of AWS. `profile` is for a value that is in a file.
    #[must_use]
    pub fn access_key(hosts: Vec<String>, profile: &str, value: ValueSource) -> Self {
        let kind = SecretKind::AccessKey { profile: profile.to_owned() };
        Self { name: access_key::ID_VARIABLE.to_owned(), hosts, placeholder: String::new(), value, kind }
    }

    /// Returns the variables of the guest with its placeholder.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        let more = match self.kind {
            SecretKind::Text => None,
            SecretKind::AccessKey { .. } => Some(access_key::SECRET_VARIABLE),
        };
        [self.name.as_str()].into_iter().chain(more)
    }
}

/// Headers that are set in each request to a host. The host does not become reachable by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderRuleSpec {
    /// `name` or `*.name`.
    pub host: String,
    /// The headers, which replace those of the guest.
    pub headers: Vec<HeaderSpec>,
}

/// A header that is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderSpec {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: ValueSource,
}

/// Returns what is wrong with a value.
pub(crate) fn problem(value: &str) -> Option<&'static str> {
    if value.is_empty() {
        return Some("it is empty");
    }
    if value.len() > MAX_VALUE {
        return Some("it is longer than 4096 bytes");
    }
    value.contains(|byte: char| byte.is_control() && byte != '\t').then_some("it contains a control character")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_in_a_header_are_rejected() {
        assert_eq!(problem("sk-very-secret"), None);
        for value in ["", "a\nb", "a\0", &"x".repeat(MAX_VALUE + 1)] {
            assert!(problem(value).is_some());
        }
    }
}
