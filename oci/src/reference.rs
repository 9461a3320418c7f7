//! References to images, as docker reads them: `python:3.12`, `host:5000/a/b@sha256:…`. The parser,
//! and with it the registry of names that state none, is oci-spec's. A caller may name another
//! default registry.

use crate::digest::Digest;
use oci_spec::distribution;
use std::{fmt, str::FromStr};

/// Maximum length in bytes of a reference: 255 for the name, 128 for the tag, and a digest.
const MAX_LENGTH: usize = 640;

/// A reference to an image: registry, repository, and a tag or digest or both.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    inner: distribution::Reference,
    digest: Option<Digest>,
}

/// A text is not a reference to an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {problem}")]
pub struct ReferenceError {
    text: String,
    problem: String,
}

impl Reference {
    /// Parses `text`. A name that states no registry belongs to `registry`, or to docker's default
    /// registry if that is `None`. The tag is `latest` if neither tag nor digest is stated.
    ///
    /// # Errors
    /// Fails if the text is longer than 640 bytes or not a reference, or if its digest is not a
    /// SHA-256 digest.
    pub fn parse(text: &str, registry: Option<&str>) -> Result<Self, ReferenceError> {
        let fail = |problem: String| ReferenceError { text: text.chars().take(MAX_LENGTH).collect(), problem };
        if text.len() > MAX_LENGTH {
            return Err(fail(format!("it is longer than {MAX_LENGTH} bytes")));
        }
        let whole = match registry {
            Some(registry) if !states_registry(text) => format!("{registry}/{text}"),
            _ => text.to_owned(),
        };
        let inner = distribution::Reference::try_from(whole.as_str()).map_err(|error| fail(error.to_string()))?;
        // Both become parts of URLs. The parser accepts letters of every script in a tag, and a first
        // component in capitals that is not a registry.
        if !inner.tag().unwrap_or_default().is_ascii() {
            return Err(fail("the tag has a character that is not ASCII".into()));
        }
        if inner.repository().bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(fail("the repository has capital letters".into()));
        }
        let digest = inner.digest().map(str::parse).transpose();
        let digest = digest.map_err(|error: crate::DigestError| fail(error.to_string()))?;
        Ok(Self { inner, digest })
    }

    /// Returns the registry as host or host:port, as it is written in references.
    #[must_use]
    pub fn registry(&self) -> &str {
        self.inner.registry()
    }

    /// Returns the host or host:port that serves the registry. It differs from the name for
    /// docker's default registry only.
    #[must_use]
    pub fn host(&self) -> &str {
        self.inner.resolve_registry()
    }

    /// Returns the repository in the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.inner.repository()
    }

    /// Returns the tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.inner.tag()
    }

    /// Returns the digest.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns what a registry is asked for: the digest if there is one, otherwise the tag.
    pub(crate) fn wanted(&self) -> String {
        self.digest.map_or_else(|| self.tag().unwrap_or("latest").to_owned(), |digest| digest.to_string())
    }
}

/// Returns true if the part before the first slash is a host, by docker's rule.
fn states_registry(text: &str) -> bool {
    text.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text, None)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let plain: Reference = "python:3.12".parse().unwrap();
        assert_eq!((plain.repository(), plain.tag()), ("library/python", Some("3.12")));
        assert!(plain.host().ends_with(plain.registry()));
        let own = Reference::parse("team/python", Some("registry.example:5000")).unwrap();
        assert_eq!(own.to_string(), "registry.example:5000/team/python:latest");
        let stated = Reference::parse("localhost/x:1", Some("registry.example")).unwrap();
        assert_eq!((stated.registry(), stated.repository()), ("localhost", "x"));
        let port: Reference = "localhost:5000/a/b_c".parse().unwrap();
        assert_eq!((port.registry(), port.repository(), port.tag()), ("localhost:5000", "a/b_c", Some("latest")));
    }

    #[test]
    fn digests_take_precedence_over_tags() {
        let digest = Digest::of(b"x");
        let both: Reference = format!("registry.example/a:1@{digest}").parse().unwrap();
        assert_eq!((both.digest(), both.tag(), both.wanted()), (Some(digest), Some("1"), digest.to_string()));
    }

    #[test]
    fn other_texts_are_rejected() {
        let long = "a".repeat(700);
        let sha512 = format!("a@sha512:{}", "0".repeat(128));
        for bad in
            ["", "UPPER", "a b", "-a", "a/../b", "a:..", "a:é", "UPPER/a", "http://a/b", "a@sha256:12", &long, &sha512]
        {
            let error = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(error.starts_with("invalid image reference"), "{error}");
        }
    }
}
