//! Names of volumes. May contain only what is safe as the name of a file.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A text that is not a name of a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid volume name {0:?}: use 1-63 characters from a-z, A-Z, 0-9, '_', '.' and '-', starting with a letter or digit"
)]
pub struct VolumeNameError(String);

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// Maximum length in bytes.
    const MAX: usize = 63;
    /// Maximum number of characters of a refused text that an error shows.
    const SHOWN: usize = 80;

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VolumeName {
    type Error = VolumeNameError;

    fn try_from(text: String) -> Result<Self, VolumeNameError> {
        let is_valid = text.len() <= Self::MAX
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if is_valid { Ok(Self(text)) } else { Err(VolumeNameError(text.chars().take(Self::SHOWN).collect())) }
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_file_names() {
        for name in ["a", "0", "Cache", "pip_cache-3.11", &"x".repeat(63)] {
            assert_eq!(VolumeName::try_from(name.to_owned()).unwrap().as_str(), name);
        }
        for name in ["", ".", "..", ".new", "-v", "_a", "a/b", "a b", "a\0", "ä", &"x".repeat(64)] {
            assert!(VolumeName::try_from(name.to_owned()).is_err(), "{name:?}");
        }
    }
}
