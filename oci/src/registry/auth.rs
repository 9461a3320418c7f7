//! Credentials, and what a registry asks for: none, a password, or a token of a token service.

use base64::Engine as _;
use std::fmt;

/// Maximum length in bytes of a challenge.
const MAX_CHALLENGE: usize = 8 << 10;
/// Maximum number of challenges of an answer that are considered.
const MAX_CHALLENGES: usize = 8;

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User name and password.
    Password {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A token that the token service exchanges for tokens.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// Returns the value of `Authorization` with the password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => Some(format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
            )),
            Self::IdentityToken(_) => None,
        }
    }
}

/// What a registry asks for (RFC 9110, section 11.6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Returns the challenge to answer of those in the values of `WWW-Authenticate`: a token if
    /// the registry offers it, since a token does not carry the password.
    pub(super) fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (bearer, other): (Vec<_>, Vec<_>) =
            values.take(MAX_CHALLENGES).filter_map(Self::parse).partition(|one| matches!(one, Self::Bearer { .. }));
        bearer.into_iter().chain(other).next()
    }

    /// Parses a value of `WWW-Authenticate` with one challenge.
    fn parse(value: &str) -> Option<Self> {
        if value.len() > MAX_CHALLENGE {
            return None;
        }
        let (scheme, parameters) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        let mut rest = parameters.trim_start();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                "scope" => scope = Some(value.to_owned()),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer { realm: realm?, service, scope })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed() {
        let bearer = r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push""#;
        let Some(Challenge::Bearer { realm, service, scope }) = Challenge::parse(bearer) else { panic!("no bearer") };
        assert_eq!((realm.as_str(), service.as_deref()), ("https://auth.example/token", Some("registry")));
        assert_eq!(scope.as_deref(), Some("repository:a/b:pull,push"));
        assert_eq!(Challenge::parse("Basic realm=x"), Some(Challenge::Basic));
        for bad in ["", "Digest x", "Bearer", "Bearer realm=\"x", "Bearer service=x"] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn token_is_preferred_to_the_password() {
        let both = ["Basic realm=x", "Negotiate", "Bearer realm=\"https://auth.example\""];
        assert!(matches!(Challenge::choose(both.into_iter()), Some(Challenge::Bearer { .. })));
        assert_eq!(Challenge::choose(both[..2].iter().copied()), Some(Challenge::Basic));
    }

    #[test]
    fn secrets_are_not_printed() {
        let credentials = Credentials::Password { user: "u".into(), password: "secret".into() };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
