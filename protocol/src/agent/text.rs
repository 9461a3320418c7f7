//! Text for a C interface of the guest: without NUL, and no longer than Linux accepts.

use serde::{Deserialize, Serialize};

/// Maximum length of an argument or environment string, in bytes without its NUL (Linux
/// `MAX_ARG_STRLEN` minus one).
pub const MAX_ARGUMENT: usize = 128 * 1024 - 1;

/// Why bytes cannot be passed to a C interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CTextError {
    /// They contain a NUL byte.
    #[error("contains a NUL byte at offset {0}")]
    Nul(usize),
    /// They are too long for one argument.
    #[error("{0} bytes is longer than the {MAX_ARGUMENT} bytes that Linux accepts in one argument")]
    TooLong(usize),
}

/// Bytes without NUL, at most [`MAX_ARGUMENT`] long: an argument, `KEY=VALUE`, path or user name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct CText(Vec<u8>);

impl CText {
    /// Returns the bytes, without a terminating NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for CText {
    type Error = CTextError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, CTextError> {
        if bytes.len() > MAX_ARGUMENT {
            return Err(CTextError::TooLong(bytes.len()));
        }
        match bytes.iter().position(|b| *b == 0) {
            Some(at) => Err(CTextError::Nul(at)),
            None => Ok(Self(bytes)),
        }
    }
}

impl TryFrom<&str> for CText {
    type Error = CTextError;

    fn try_from(text: &str) -> Result<Self, CTextError> {
        Self::try_from(text.as_bytes().to_vec())
    }
}

impl From<CText> for Vec<u8> {
    fn from(text: CText) -> Self {
        text.0
    }
}
