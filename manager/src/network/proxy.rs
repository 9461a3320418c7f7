//! The upstream proxy that carries a sandbox's connections: what a user or the operator asks for, and
//! what a dialer gets. The password is never part of it: only where it comes from. May not connect to
//! the proxy: the dialer does. Its name is resolved here, by the host, and not by the guest's resolver.

use super::secrets::{Kept, SecretText, ValueSource};
use sandboxvm_egress_policy::name::{DomainName, NameError};
use sandboxvm_protocol::egress::{ProxyLogin, ProxyProtocol, UpstreamProxy, proxy::MAX_LOGIN};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    str::FromStr,
    thread,
    time::Duration,
};
use tokio::{sync::oneshot, time::timeout};

/// Maximum time to resolve the name of a proxy. A supervisor has 10 seconds for all of its start.
const RESOLVED_WITHIN: Duration = Duration::from_secs(4);

/// A proxy that carries every TCP connection of a sandbox, except those to resolvers and to services of
/// the host. Its text form is `socks5://[USER[:PASSWORD]@]HOST:PORT`, or the same with `http://` for
/// HTTP CONNECT; in user and password, `%` and two hexadecimal digits stand for a byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxySpec {
    /// How it is asked.
    pub protocol: ProxyProtocol,
    /// A name, or an IP address. The host resolves the name when the processes of the network start.
    pub host: String,
    /// Its port, 1 to 65535.
    pub port: u16,
    /// The user name that it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The password. Without one, it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<ValueSource>,
}

/// Why a proxy cannot be used. No text of it repeats a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The text is not one of a proxy.
    #[error("expected socks5://[USER[:PASSWORD]@]HOST:PORT or http://[USER[:PASSWORD]@]HOST:PORT")]
    Text,
    /// Its host is not a name or an address.
    #[error("invalid host {host:?}: {problem}")]
    Host {
        /// The host.
        host: String,
        /// What is wrong with it.
        problem: NameError,
    },
    /// Nothing listens on port 0.
    #[error("port 0 cannot be connected to")]
    Port,
    /// User name or password cannot be sent.
    #[error("invalid {what}: expected 1 to {MAX_LOGIN} bytes without control characters")]
    Login {
        /// Which of them.
        what: &'static str,
    },
    /// HTTP separates user name and password by a colon.
    #[error("invalid user name: an HTTP proxy would read what follows its colon as the password")]
    Colon,
    /// A password alone cannot be sent.
    #[error("a password needs a user name")]
    NoUser,
    /// The file of the password has no absolute path.
    #[error("the file of the password needs an absolute path")]
    RelativePath,
    /// The operator's file is read by more programs than the file of a password should be.
    #[error("the password of the operator's proxy has to be in a file (proxy_password_file)")]
    Inline,
    /// The password cannot be read.
    #[error("cannot read its password: {0}")]
    Password(String),
    /// The name has no address.
    #[error("cannot resolve its name: {0}")]
    Unresolved(String),
}

impl ProxySpec {
    /// Checks what needs nothing of the host.
    ///
    /// # Errors
    /// Every [`ProxyError`] except [`ProxyError::Password`] and [`ProxyError::Unresolved`].
    pub fn check(&self) -> Result<(), ProxyError> {
        if self.host.parse::<IpAddr>().is_err() {
            let parsed = self.host.parse::<DomainName>();
            parsed.map_err(|problem| ProxyError::Host { host: self.host.clone(), problem })?;
        }
        if self.port == 0 {
            return Err(ProxyError::Port);
        }
        match (&self.user, &self.password) {
            (None, Some(_)) => return Err(ProxyError::NoUser),
            (Some(user), _) if !is_login(user) => return Err(ProxyError::Login { what: "user name" }),
            (Some(user), _) if self.protocol == ProxyProtocol::Http && user.contains(':') => {
                return Err(ProxyError::Colon);
            }
            _ => {}
        }
        match &self.password {
            Some(ValueSource::Given(text)) if !is_login(text.as_str()) => Err(ProxyError::Login { what: "password" }),
            Some(ValueSource::File(path)) if !path.is_absolute() => Err(ProxyError::RelativePath),
            _ => Ok(()),
        }
    }

    /// Checks that the host's resolver knows its name, which is not kept: each start of a dialer resolves it.
    ///
    /// # Errors
    /// [`ProxyError::Unresolved`].
    pub async fn check_name(&self) -> Result<(), ProxyError> {
        if self.host.parse::<IpAddr>().is_ok() {
            return Ok(());
        }
        let resolved = resolve(self.host.clone(), self.port).await;
        resolved.map(drop).map_err(|error| ProxyError::Unresolved(error.to_string()))
    }

    /// Returns the proxy of an operator, whose password is in a file.
    ///
    /// # Errors
    /// Every [`ProxyError`] of [`Self::check`].
    pub fn of_operator(mut self, password_file: Option<PathBuf>) -> Result<Self, ProxyError> {
        if self.password.is_some() {
            return Err(ProxyError::Inline);
        }
        self.password = password_file.map(ValueSource::File);
        self.check()?;
        Ok(self)
    }

    /// Returns the proxy without what it is shown, for a copy that does not inherit secrets.
    pub(crate) fn without_login(self) -> Self {
        Self { user: None, password: None, ..self }
    }

    /// Returns what a dialer needs to know, with the password as it can be read now.
    pub(super) fn upstream(&self, is_operators: bool, kept: &Kept) -> Result<Upstream, ProxyError> {
        self.check()?;
        let password = match &self.password {
            Some(source) => kept.proxy_password(source).map_err(ProxyError::Password)?,
            None => String::new(),
        };
        if password.len() > MAX_LOGIN {
            return Err(ProxyError::Password(format!("it is longer than {MAX_LOGIN} bytes")));
        }
        let login = self.user.clone().map(|user| ProxyLogin { user, password });
        Ok(Upstream { protocol: self.protocol, host: self.host.clone(), port: self.port, login, is_operators })
    }
}

fn is_login(text: &str) -> bool {
    (1..=MAX_LOGIN).contains(&text.len()) && !text.contains(char::is_control)
}

/// Where it is, without user and password.
impl fmt::Display for ProxySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            ProxyProtocol::Socks5 => "socks5",
            ProxyProtocol::Http => "http",
        };
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
    }
}

impl FromStr for ProxySpec {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let (scheme, rest) = text.split_once("://").ok_or(ProxyError::Text)?;
        let protocol = match scheme {
            "socks5" => ProxyProtocol::Socks5,
            "http" => ProxyProtocol::Http,
            _ => return Err(ProxyError::Text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, at) = match rest.rsplit_once('@') {
            Some((login, at)) => (Some(login), at),
            None => (None, rest),
        };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, "")) => (Some(decoded(user)?), None),
            Some((user, password)) => {
                (Some(decoded(user)?), Some(ValueSource::Given(SecretText::new(decoded(password)?))))
            }
            None => (None, None),
        };
        let (host, port) = at.rsplit_once(':').ok_or(ProxyError::Text)?;
        let port = port.parse().map_err(|_| ProxyError::Text)?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').filter(|v6| v6.contains(':')).ok_or(ProxyError::Text)?,
            None if host.contains(':') => return Err(ProxyError::Text),
            None => host,
        };
        let spec = Self { protocol, host: host.to_owned(), port, user, password };
        spec.check()?;
        Ok(spec)
    }
}

/// Replaces `%` and two hexadecimal digits by the byte that they stand for.
fn decoded(text: &str) -> Result<String, ProxyError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, after @ ..] = rest else { return Err(ProxyError::Text) };
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or(ProxyError::Text)?);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| ProxyError::Text)
}

/// Reads the text form of an operator's proxy in a configuration file. Its password is in another file.
pub(super) fn of_configuration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ProxySpec>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let proxy = text.parse().and_then(|proxy: ProxySpec| proxy.of_operator(None));
    proxy.map(Some).map_err(|problem| D::Error::custom(format_args!("invalid proxy: {problem}")))
}

/// A proxy with its password, before its name is resolved. Another one needs another dialer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upstream {
    protocol: ProxyProtocol,
    host: String,
    port: u16,
    pub(super) login: Option<ProxyLogin>,
    is_operators: bool,
}

impl Upstream {
    /// Returns the proxy with its address: the first one that the host's resolver returns.
    pub(crate) async fn resolved(&self) -> Result<UpstreamProxy, ProxyError> {
        let Self { protocol, host, port, login, is_operators } = self.clone();
        let address = match host.parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, port),
            Err(_) => resolve(host, port).await.map_err(|error| ProxyError::Unresolved(error.to_string()))?,
        };
        Ok(UpstreamProxy { protocol, address, login, is_operators })
    }
}

async fn resolve(host: String, port: u16) -> io::Result<SocketAddr> {
    let (sender, resolved) = oneshot::channel();
    // Not a thread of the runtime, which would wait for it when it ends.
    thread::Builder::new().name("proxy name".to_owned()).spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs();
        let first = addresses.and_then(|mut all| all.next().ok_or_else(|| io::Error::other("it has no address")));
        // A caller that does not wait any more needs no answer.
        let _ = sender.send(first);
    })?;
    match timeout(RESOLVED_WITHIN, resolved).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(_)) => Err(io::Error::other("the thread ended")),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(text: &str) -> ProxySpec {
        text.parse().unwrap()
    }

    fn given(text: &str) -> Option<ValueSource> {
        Some(ValueSource::Given(SecretText::new(text.into())))
    }

    #[test]
    fn proxies_are_read_from_their_text_and_shown_without_login() {
        let plain = proxy("socks5://proxy.example:1080");
        assert_eq!((plain.protocol, plain.host.as_str(), plain.port), (ProxyProtocol::Socks5, "proxy.example", 1080));
        assert_eq!((&plain.user, &plain.password), (&None, &None));
        let full = proxy("http://me:p%40ss:%25w@[2001:db8::1]:3128/");
        assert_eq!((full.host.as_str(), full.user.as_deref()), ("2001:db8::1", Some("me")));
        assert_eq!(full.password, given("p@ss:%w"));
        assert_eq!(full.to_string(), "http://[2001:db8::1]:3128");
        assert!(!format!("{full:?}").contains("ss:"), "{full:?}");
        assert_eq!(proxy("socks5://me:a@b@192.0.2.1:1").password, given("a@b"));
        assert_eq!(proxy("socks5://me:@localhost:1").password, None);
    }

    #[test]
    fn texts_of_no_proxy_are_rejected_without_repeating_the_password() {
        for text in [
            "proxy.example:1080",
            "https://proxy.example:443",
            "socks5h://proxy.example:1080",
            "socks5://proxy.example",
            "socks5://proxy.example:port",
            "socks5://2001:db8::1:1080",
            "socks5://[proxy.example]:1080",
            "socks5://me:hush%4@proxy.example:1",
            "http://me:hush%ff@proxy.example:1",
            "http://proxy.example:1080/path",
        ] {
            assert_eq!(text.parse::<ProxySpec>().unwrap_err(), ProxyError::Text, "{text}");
        }
        let refusal = |text: &str| text.parse::<ProxySpec>().unwrap_err().to_string();
        assert_eq!(refusal("socks5://proxy.example:0"), "port 0 cannot be connected to");
        assert!(refusal("socks5://:hush@a.example:1").starts_with("invalid user name"));
        assert!(refusal("socks5://a%00:hush@a.example:1").starts_with("invalid user name"));
        assert!(refusal("http://a%3ab:hush@a.example:1").contains("colon"));
        let long = format!("socks5://me:{}@a.example:1", "x".repeat(MAX_LOGIN + 1));
        assert_eq!(refusal(&long), "invalid password: expected 1 to 255 bytes without control characters");
        assert!(refusal("socks5://127.1:1080").starts_with("invalid host \"127.1\""));
    }

    #[test]
    fn passwords_of_operators_are_in_files() {
        let inline = proxy("socks5://me:hush@a.example:1").of_operator(None).unwrap_err();
        assert_eq!(inline, ProxyError::Inline);
        let relative = proxy("socks5://me@a.example:1").of_operator(Some("password".into())).unwrap_err();
        assert_eq!(relative, ProxyError::RelativePath);
        assert_eq!(proxy("http://a.example:1").of_operator(Some("/p".into())).unwrap_err(), ProxyError::NoUser);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hush\n").unwrap();
        let operators = proxy("socks5://me@a.example:1").of_operator(Some(file.path().into())).unwrap();
        let upstream = operators.upstream(true, &Kept::default()).unwrap();
        assert_eq!(upstream.login.as_ref().unwrap().password, "hush");
        assert!(!format!("{upstream:?}").contains("hush"));
        std::fs::write(file.path(), "x".repeat(256)).unwrap();
        assert_ne!(operators.upstream(true, &Kept::default()), Ok(upstream));
        std::fs::remove_file(file.path()).unwrap();
        let missing = operators.upstream(true, &Kept::default()).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read its password: ") && missing.contains("No such file"), "{missing}");
    }

    #[tokio::test]
    async fn names_of_proxies_are_resolved_by_the_host() {
        let resolved = |text: &str| {
            let upstream = proxy(text).upstream(false, &Kept::default()).unwrap();
            async move { upstream.resolved().await }
        };
        assert_eq!(resolved("socks5://192.0.2.1:1080").await.unwrap().address, "192.0.2.1:1080".parse().unwrap());
        let local = resolved("http://localhost:3128").await.unwrap();
        assert!(local.address.ip().is_loopback() && local.address.port() == 3128 && !local.is_operators);
    }

    #[tokio::test]
    async fn names_without_an_address_are_reported() {
        for known in ["socks5://192.0.2.1:1080", "socks5://[2001:db8::1]:1080", "socks5://localhost:1080"] {
            assert_eq!(proxy(known).check_name().await, Ok(()), "{known}");
        }
        // No name below it has an address (RFC 6761), and a host without a resolver has none for any.
        let unknown = proxy("socks5://proxy.invalid:1080").check_name().await;
        assert!(matches!(unknown, Err(ProxyError::Unresolved(_))), "{unknown:?}");
    }
}
