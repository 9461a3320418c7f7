//! Where a request goes: scheme, host, port, path. URLs come from registries and are hostile.

use super::error::RegistryError;
use hyper::http::{Uri, uri::Authority};

/// Maximum length in bytes of a URL. Signed URLs of storage services have about 2 KiB.
const MAX_URL: usize = 16 << 10;
/// Maximum length in bytes of a host, which is that of a DNS name.
const MAX_HOST: usize = 253;

/// The origin and path of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tls: bool,
    /// Host without port and without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query.
    pub(super) path: String,
}

impl Target {
    /// Returns the target of `path` at a host, as `host` or `host:port`.
    pub(super) fn at(host: &str, path: &str, plain_http: &[String]) -> Result<Self, RegistryError> {
        let fail = || RegistryError::Address(host.chars().take(200).collect());
        let authority: Authority = host.parse().map_err(|_| fail())?;
        let name = host_of(&authority).ok_or_else(fail)?;
        let tls = !is_plain(&name, authority.port_u16(), plain_http);
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host: name, port, path: path.to_owned() })
    }

    /// Returns the target of a URL that a user states.
    pub(super) fn of(url: &str, may_be_plain: bool) -> Result<Self, RegistryError> {
        // A fragment is for the program that shows the file.
        let url = url.split('#').next().unwrap_or_default();
        let nowhere = Self { tls: true, host: String::new(), port: 443, path: String::new() };
        let target = nowhere.resolved(url, |_, _| may_be_plain)?;
        if target.host.is_empty() { Err(RegistryError::Address(url.chars().take(200).collect())) } else { Ok(target) }
    }

    /// Returns where a `Location` or a URL of this target's answer leads. Only hosts in
    /// `plain_http` are spoken to without TLS.
    pub(super) fn follow(&self, location: &str, plain_http: &[String]) -> Result<Self, RegistryError> {
        self.resolved(location, |host, port| is_plain(host, Some(port), plain_http))
    }

    fn resolved(&self, location: &str, is_plain: impl Fn(&str, u16) -> bool) -> Result<Self, RegistryError> {
        let fail = || RegistryError::Address(location.chars().take(200).collect());
        if location.len() > MAX_URL {
            return Err(fail());
        }
        let uri: Uri = location.parse().map_err(|_| fail())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let Some(authority) = uri.authority() else {
            return if path.starts_with('/') { Ok(Self { path, ..self.clone() }) } else { Err(fail()) };
        };
        let host = host_of(authority).ok_or_else(fail)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(fail()),
        };
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if !tls && !is_plain(&host, port) {
            return Err(RegistryError::NotEncrypted(format!("{host}:{port}")));
        }
        Ok(Self { tls, host, port, path: if path.is_empty() { "/".to_owned() } else { path } })
    }

    /// Returns true if credentials for this target may be sent to the other one.
    pub(super) fn is_same_origin(&self, other: &Self) -> bool {
        (self.tls, &self.host, self.port) == (other.tls, &other.host, other.port)
    }

    /// Returns the value of the header `Host`, also for messages.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    /// Returns the target with another parameter in its query.
    pub(super) fn with_query(mut self, name: &str, value: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
        self.path = format!("{}{separator}{name}={value}", self.path);
        self
    }
}

/// Returns the host without brackets, or `None` if it is not one or if a user name precedes it.
fn host_of(authority: &Authority) -> Option<String> {
    let host = authority.host().trim_matches(['[', ']']);
    let is_accepted = !host.is_empty() && host.len() <= MAX_HOST && !authority.as_str().contains('@');
    is_accepted.then(|| host.to_ascii_lowercase())
}

fn is_plain(host: &str, port: Option<u16>, plain_http: &[String]) -> bool {
    let with_port = port.map(|port| format!("{host}:{port}"));
    let is_it = |plain: &String, name: Option<&str>| name.is_some_and(|name| plain.eq_ignore_ascii_case(name));
    plain_http.iter().any(|plain| is_it(plain, Some(host)) || is_it(plain, with_port.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_and_never_lose_encryption() {
        let plain = ["localhost:5000".to_owned()];
        let base = Target::at("registry.example", "/v2/", &plain).unwrap();
        assert_eq!((base.tls, base.port), (true, 443));
        assert_eq!(base.follow("/v2/x?a=b", &plain).unwrap().path, "/v2/x?a=b");
        let other = base.follow("https://cdn.example:8443/blob", &plain).unwrap();
        assert!(!base.is_same_origin(&other));
        assert_eq!(other.authority(), "cdn.example:8443");
        assert!(matches!(base.follow("http://registry.example/x", &plain), Err(RegistryError::NotEncrypted(_))));
        assert!(!base.follow("http://localhost:5000/x", &plain).unwrap().tls);
        for bad in [
            "",
            "ftp://a/b",
            "https://user:secret@a/b",
            "relative",
            "//a/b c",
            &"/a".repeat(20_000),
            &format!("https://{}/", "a".repeat(300)),
        ] {
            assert!(base.follow(bad, &plain).is_err(), "{bad}");
        }
        assert_eq!(Target::of("https://a.example/x?y#z", false).unwrap().path, "/x?y");
        assert!(!Target::of("http://a.example", true).unwrap().tls);
        for bad in ["/x", "a.example/x", "file:///etc/passwd", "https://user@a/x", "#", "http://a.example/x"] {
            assert!(Target::of(bad, false).is_err(), "{bad}");
        }
        assert!(Target::at("user@host", "/", &plain).is_err());
        assert_eq!(base.with_query("ns", "a:b/c").path, "/v2/?ns=a%3Ab%2Fc");
    }
}
