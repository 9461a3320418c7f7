//! What a key calls a volume.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Maximum length in bytes.
const MAX_LENGTH: usize = 63;

/// A text that is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid name of a volume: expected 1-{MAX_LENGTH} characters from a-z, A-Z, 0-9, '_' and '-'")]
pub(crate) struct VolumeNameError;

/// A name, which is unique among the volumes of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct VolumeName(String);

impl VolumeName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VolumeName {
    type Error = VolumeNameError;

    fn try_from(text: String) -> Result<Self, VolumeNameError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_name = (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_plain);
        if is_name { Ok(Self(text)) } else { Err(VolumeNameError) }
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
