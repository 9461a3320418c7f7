//! Header rules and secrets: for which hosts TLS is ended, and what is put into requests to them. Neither makes a host
//! reachable: the policy decides that.

mod access_key;
pub mod aws;
pub mod head;
pub mod placeholders;
pub mod verdict;

use crate::tls::leaves::Leaves;
use access_key::AccessKey;
use hyper::header::{self, HeaderName, HeaderValue};
use placeholders::Placeholders;
use sandboxvm_egress_policy::name::{DomainName, DomainPattern, NameError};
use sandboxvm_protocol::egress::{HeaderRule, NetworkSettings, SecretValue, settings::MAX_SECRET};
use std::{fmt, rc::Rc};
use zeroize::Zeroizing;

/// Shortest placeholder in bytes. A shorter one could be part of what a guest sends for other reasons.
const MIN_PLACEHOLDER: usize = 32;

/// Headers that frame a request or say where it goes. No rule sets them.
const FRAMING: [HeaderName; 10] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
];

/// The header rules and secrets of a sandbox.
#[derive(Debug, Default)]
pub struct Credentials {
    rules: Vec<Rule>,
    secrets: Vec<Secret>,
    placeholders: Rc<Placeholders>,
    leaves: Option<Leaves>,
}

#[derive(Debug)]
struct Rule {
    host: DomainPattern,
    headers: Vec<(HeaderName, HeaderValue)>,
}

struct Secret {
    name: String,
    placeholder: String,
    hosts: Vec<DomainPattern>,
    value: Result<Value, String>,
}

enum Value {
    /// It replaces its placeholder.
    Text(Zeroizing<String>),
    /// It signs.
    AccessKey(AccessKey),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Why header rules or secrets cannot be used. Values are never part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// A pattern of hosts.
    #[error("invalid host {host:?}: {problem}")]
    Host {
        /// As it was given.
        host: String,
        /// What is wrong with it.
        problem: NameError,
    },
    /// A header's name.
    #[error("invalid header {0:?}: it has no valid name, or frames the request")]
    Header(String),
    /// A header's value.
    #[error("invalid value of header {0:?}: it contains a control character or is too long")]
    HeaderValue(String),
    /// A secret's value.
    #[error("invalid secret {0:?}: its value is empty, too long, not an access key, or contains a control character")]
    Secret(String),
    /// A placeholder.
    #[error("invalid placeholder of secret {0:?}: it is too short, or contains a character that would be encoded")]
    Placeholder(String),
}

impl Credentials {
    /// Reads the header rules and secrets of `settings`.
    ///
    /// # Errors
    /// Every [`CredentialsError`].
    pub fn new(settings: &NetworkSettings) -> Result<Self, CredentialsError> {
        let rules = settings.header_rules.iter().map(rule).collect::<Result<_, _>>()?;
        let secrets = settings.secrets.iter().map(secret).collect::<Result<Vec<_>, _>>()?;
        let placeholders = Rc::new(Placeholders::new(secrets.iter().map(|secret| secret.placeholder.as_str())));
        let leaves = settings.authority.as_ref().map(|key| Leaves::new(&key.0));
        Ok(Self { rules, secrets, placeholders, leaves })
    }

    /// Returns true if there are neither rules nor secrets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.secrets.is_empty()
    }

    /// Returns true if TLS to the host `name` is ended.
    #[must_use]
    pub fn ends_tls(&self, name: &DomainName) -> bool {
        !self.headers(name).is_empty() || self.secrets.iter().any(|secret| secret.is_for(name))
    }

    /// Returns why the host `name` is refused, if a secret for it cannot be read.
    #[must_use]
    pub fn unusable(&self, name: &DomainName) -> Option<String> {
        let failed = self.secrets.iter().filter(|secret| secret.is_for(name));
        failed.into_iter().find_map(|secret| {
            let reason = secret.value.as_ref().err()?;
            Some(format!("the secret {} cannot be read: {reason}", secret.name))
        })
    }

    /// Returns the placeholders of all secrets.
    #[must_use]
    pub fn placeholders(&self) -> Rc<Placeholders> {
        Rc::clone(&self.placeholders)
    }

    /// Returns the name of the secret at `position` of the settings.
    #[must_use]
    pub fn secret_name(&self, position: usize) -> &str {
        self.secrets.get(position).map_or("", |secret| &secret.name)
    }

    /// Returns what signs the certificates that the guest is shown.
    #[must_use]
    pub fn leaves(&self) -> Option<&Leaves> {
        self.leaves.as_ref()
    }

    /// Returns the headers that are set in requests to the host `name`.
    fn headers(&self, name: &DomainName) -> &[(HeaderName, HeaderValue)] {
        self.rule(name).map(|rule| rule.headers.as_slice()).unwrap_or_default()
    }

    /// Returns the rule for a host: its own, else that of the longest wildcard.
    fn rule(&self, name: &DomainName) -> Option<&Rule> {
        let length = |rule: &&Rule| match &rule.host {
            DomainPattern::Exact(_) => usize::MAX,
            DomainPattern::Below(parent) => parent.as_str().len(),
        };
        self.rules.iter().filter(|rule| rule.host.matches(name)).max_by_key(length)
    }
}

impl Secret {
    fn access_key(&self) -> Option<&AccessKey> {
        match &self.value {
            Ok(Value::AccessKey(key)) => Some(key),
            Ok(Value::Text(_)) | Err(_) => None,
        }
    }

    fn is_for(&self, name: &DomainName) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(name))
    }
}

fn pattern(host: &str) -> Result<DomainPattern, CredentialsError> {
    host.parse().map_err(|problem| CredentialsError::Host { host: host.to_owned(), problem })
}

fn rule(rule: &HeaderRule) -> Result<Rule, CredentialsError> {
    let headers = rule.headers.iter().map(|header| {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok().filter(|name| !FRAMING.contains(name));
        let name = name.ok_or_else(|| CredentialsError::Header(header.name.clone()))?;
        let value = sensitive(header.value.as_bytes()).filter(|_| header.value.len() <= MAX_SECRET);
        Ok((name, value.ok_or_else(|| CredentialsError::HeaderValue(header.name.clone()))?))
    });
    Ok(Rule { host: pattern(&rule.host)?, headers: headers.collect::<Result<_, _>>()? })
}

fn secret(secret: &SecretValue) -> Result<Secret, CredentialsError> {
    let SecretValue { name, placeholder, hosts, value } = secret;
    // These are the characters that no encoding of URLs, JSON or forms changes.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if placeholder.len() < MIN_PLACEHOLDER || !placeholder.bytes().all(is_plain) {
        return Err(CredentialsError::Placeholder(name.clone()));
    }
    Ok(Secret {
        name: name.clone(),
        placeholder: placeholder.clone(),
        hosts: hosts.iter().map(|host| pattern(host)).collect::<Result<_, _>>()?,
        value: match value {
            Ok(text) => Ok(usable(text).ok_or_else(|| CredentialsError::Secret(name.clone()))?),
            Err(reason) => Err(reason.clone()),
        },
    })
}

fn usable(text: &str) -> Option<Value> {
    if text.len() > MAX_SECRET {
        None
    } else if text.contains('\n') {
        AccessKey::parse(text).map(Value::AccessKey)
    } else {
        let is_value = !text.is_empty() && HeaderValue::from_str(text).is_ok();
        is_value.then(|| Value::Text(Zeroizing::new(text.to_owned())))
    }
}

/// Returns a header value that HTTP/2 neither compresses nor keeps in its table.
fn sensitive(value: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sandboxvm_protocol::egress::HeaderTemplate;

    pub(crate) const PLACEHOLDER: &str = "sandboxvm-secret-0123456789abcdef0123456789abcdef";
    pub(crate) const OTHER: &str = "sandboxvm-secret-ffffffffffffffffffffffffffffffff";
    pub(crate) const VALUE: &str = "sk-top-secret-value";

    pub(crate) fn settings() -> NetworkSettings {
        let secret = |name: &str, placeholder: &str, host: &str, value: Result<&str, &str>| SecretValue {
            name: name.into(),
            placeholder: placeholder.into(),
            hosts: vec![host.into()],
            value: value.map(Into::into).map_err(Into::into),
        };
        let rule = |host: &str, value: &str| HeaderRule {
            host: host.into(),
            headers: vec![HeaderTemplate { name: "X-Key".into(), value: value.into() }],
        };
        NetworkSettings {
            secrets: vec![
                secret("API_TOKEN", PLACEHOLDER, "api.example", Ok(VALUE)),
                secret("GONE", OTHER, "gone.example", Err("no such file")),
            ],
            header_rules: vec![
                rule("*.example", "short"),
                rule("*.corp.example", "long"),
                rule("a.corp.example", "own"),
                HeaderRule { host: "plain.corp.example".into(), headers: Vec::new() },
            ],
            ..NetworkSettings::default()
        }
    }

    pub(crate) fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn exact_host_beats_the_longest_wildcard() {
        let credentials = Credentials::new(&settings()).unwrap();
        let value = |host: &str| credentials.headers(&name(host)).first().map(|(_, value)| value.to_str().unwrap());
        assert_eq!(value("a.corp.example"), Some("own"));
        assert_eq!(value("b.corp.example"), Some("long"));
        assert_eq!(value("corp.example"), Some("short"));
        assert_eq!(value("example"), None);
        assert_eq!(value("plain.corp.example"), None);
        assert!(
            !credentials.ends_tls(&name("plain.corp.example")),
            "a rule without headers keeps those of a wildcard away"
        );
        assert!(credentials.ends_tls(&name("api.example")) && !credentials.ends_tls(&name("example")));
    }

    #[test]
    fn hosts_of_a_secret_that_cannot_be_read_are_refused_with_the_reason() {
        let credentials = Credentials::new(&settings()).unwrap();
        let reason = credentials.unusable(&name("gone.example")).unwrap();
        assert_eq!(reason, "the secret GONE cannot be read: no such file");
        assert_eq!(credentials.unusable(&name("api.example")), None);
        assert!(!format!("{credentials:?}").contains(VALUE));
    }

    #[test]
    fn rules_and_secrets_that_cannot_be_used_are_rejected() {
        let changed = |change: &dyn Fn(&mut NetworkSettings)| {
            let mut settings = settings();
            change(&mut settings);
            let error = Credentials::new(&settings).unwrap_err();
            assert!(!error.to_string().contains(VALUE), "{error}");
            error
        };
        for header in ["Host", "transfer-encoding", "x y", "", ":path"] {
            let error = changed(&|settings| settings.header_rules[0].headers[0].name = header.into());
            assert_eq!(error, CredentialsError::Header(header.into()));
        }
        for value in ["a\r\nHost: b", "\u{7f}"] {
            let error = changed(&|settings| settings.header_rules[0].headers[0].value = value.into());
            assert_eq!(error, CredentialsError::HeaderValue("X-Key".into()));
            let error = changed(&|settings| settings.secrets[0].value = Ok(format!("{VALUE}{value}")));
            assert_eq!(error, CredentialsError::Secret("API_TOKEN".into()));
        }
        for placeholder in ["", "short", "a placeholder with spaces in it, and long enough"] {
            let error = changed(&|settings| settings.secrets[0].placeholder = placeholder.into());
            assert_eq!(error, CredentialsError::Placeholder("API_TOKEN".into()));
        }
        let error = changed(&|settings| settings.secrets[0].hosts.push("192.0.2.1".into()));
        assert!(matches!(error, CredentialsError::Host { .. }));
    }
}
