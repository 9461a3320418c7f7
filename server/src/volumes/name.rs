//! What a key calls a volume. It is never the name of a file, so it has other rules than the names of the
//! manager's volumes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Maximum length in bytes.
const MAX_LENGTH: usize = 63;

/// A text that is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid name of a volume: expected 1-{MAX_LENGTH} characters from a-z, A-Z, 0-9, '_' and '-'")]
pub(crate) struct KeysVolumeNameError;

/// A name, which is unique among the volumes of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct KeysVolumeName(String);

impl KeysVolumeName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for KeysVolumeName {
    type Error = KeysVolumeNameError;

    fn try_from(text: String) -> Result<Self, KeysVolumeNameError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_name = (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_plain);
        if is_name { Ok(Self(text)) } else { Err(KeysVolumeNameError) }
    }
}

impl From<KeysVolumeName> for String {
    fn from(name: KeysVolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for KeysVolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
