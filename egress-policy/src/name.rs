//! Domain names as rules and connections state them, in one normal form. Comparing two names is comparing two values:
//! nothing outside this module lowers case or strips a dot.

use std::{fmt, str::FromStr};

/// Longest name in bytes, without the dot of the root (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 253;

/// Longest label in bytes (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// A domain name in its normal form: ASCII, lower case, without the dot of the root. It is never an IP address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Box<str>);

/// Why a text is not a domain name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing in it, or nothing between two dots.
    #[error("a label is empty")]
    Empty,
    /// It is longer than [`MAX_NAME`], or a label is longer than 63 bytes.
    #[error("it is too long")]
    TooLong,
    /// A byte is none of letters, digits, hyphen and underscore.
    #[error("it contains a character other than letters, digits, hyphens and underscores")]
    Character,
    /// Its last label is a number, so some resolver reads it as an IPv4 address (`127.1`, `0x7f.1`, `2130706433`).
    #[error("its last label is a number, so it could be read as an IP address")]
    Numeric,
}

impl DomainName {
    /// Returns the normal form of `bytes`, which may be of any origin.
    ///
    /// # Errors
    /// Every [`NameError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        // A name may end with the dot of the root: `example.com.` is `example.com`.
        let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
        if bytes.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        let mut name = String::with_capacity(bytes.len());
        for label in bytes.split(|byte| *byte == b'.') {
            check_label(label)?;
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        if is_number(last) {
            return Err(NameError::Numeric);
        }
        Ok(Self(name.into()))
    }

    /// Returns the normal form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true if this name is below `parent`, at any depth, and not `parent` itself.
    #[must_use]
    pub fn is_below(&self, parent: &DomainName) -> bool {
        self.0.strip_suffix(&*parent.0).is_some_and(|rest| rest.ends_with('.'))
    }
}

fn check_label(label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::Empty);
    }
    if label.len() > MAX_LABEL {
        return Err(NameError::TooLong);
    }
    let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if label.iter().all(is_good) { Ok(()) } else { Err(NameError::Character) }
}

/// True for what inet_aton(3) reads as a number: decimal, octal, or hexadecimal after `0x`.
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text.as_bytes())
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which names a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DomainPattern {
    /// One name.
    Exact(DomainName),
    /// All names below it, at any depth, and not the name itself: `*.example.com`.
    Below(DomainName),
}

impl DomainPattern {
    /// Returns true if the rule is about `name`.
    #[must_use]
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Below(parent) => name.is_below(parent),
        }
    }
}

impl DomainPattern {
    /// Returns true if every name that the pattern matches is one that `other` matches.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(name), _) => other.matches(name),
            (Self::Below(parent), Self::Below(theirs)) => parent == theirs || parent.is_below(theirs),
            (Self::Below(_), Self::Exact(_)) => false,
        }
    }
}

impl FromStr for DomainPattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix("*.") {
            Some(parent) => parent.parse().map(Self::Below),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    #[test]
    fn case_and_the_root_dot_make_no_difference() {
        assert_eq!(name("API.Example.COM."), name("api.example.com"));
    }

    #[test]
    fn texts_that_are_not_names_are_rejected() {
        for (text, error) in [
            ("", NameError::Empty),
            (".", NameError::Empty),
            ("a..b", NameError::Empty),
            ("a.example..", NameError::Empty),
            ("exa mple.com", NameError::Character),
            ("example.com\0.evil.example", NameError::Character),
            ("example.com:443", NameError::Character),
            ("b\u{fc}cher.example", NameError::Character),
            ("*.example.com", NameError::Character),
            ("127.0.0.1", NameError::Numeric),
            ("127.1", NameError::Numeric),
            ("2130706433", NameError::Numeric),
            ("0x7f000001", NameError::Numeric),
            ("0177.0.0.01", NameError::Numeric),
            ("example.0x", NameError::Numeric),
        ] {
            assert_eq!(text.parse::<DomainName>(), Err(error), "{text:?}");
        }
        assert_eq!("a".repeat(64).parse::<DomainName>(), Err(NameError::TooLong));
        assert_eq!(vec!["abcdefg"; 32].join(".").parse::<DomainName>(), Err(NameError::TooLong));
    }

    #[test]
    fn a_wildcard_matches_any_depth_below_its_parent_and_not_the_parent() {
        let pattern: DomainPattern = "*.example.com".parse().unwrap();
        assert!(pattern.matches(&name("a.example.com")) && pattern.matches(&name("a.b.example.com")));
        for other in ["example.com", "badexample.com", "example.com.evil.example", "a.example.co"] {
            assert!(!pattern.matches(&name(other)), "{other}");
        }
    }
}
