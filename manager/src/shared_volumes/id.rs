//! The ID of a volume of the server, which is the name of its directory.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Maximum length in bytes.
const MAX_LENGTH: usize = 63;

/// A text that is not an ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid ID of a volume: expected 8-{MAX_LENGTH} characters from a-z and 0-9")]
pub struct SharedVolumeIdError;

/// An ID. It is one component of a path, and leads nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SharedVolumeId(String);

impl SharedVolumeId {
    /// Returns the ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SharedVolumeId {
    type Error = SharedVolumeIdError;

    fn try_from(text: String) -> Result<Self, SharedVolumeIdError> {
        let is_plain = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'));
        if is_plain && (8..=MAX_LENGTH).contains(&text.len()) { Ok(Self(text)) } else { Err(SharedVolumeIdError) }
    }
}

impl From<SharedVolumeId> for String {
    fn from(id: SharedVolumeId) -> Self {
        id.0
    }
}

impl fmt::Display for SharedVolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_directories_that_lead_nowhere() {
        assert!(SharedVolumeId::try_from("0123456789abcdef".to_owned()).is_ok());
        for bad in ["", "short", "../../etc", "a/bcdefgh", "abcdefg.", "ABCDEFGH", "abcdefg\0", &"a".repeat(64)] {
            assert!(SharedVolumeId::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
