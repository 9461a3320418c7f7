//! How a layer is compressed: as its media type states it, and as its first bytes show it. The two
//! must agree.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Compression of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// A tar archive without compression.
    Tar,
    /// Gzip (RFC 1952), of one or more members.
    Gzip,
    /// Zstandard (RFC 8878), of one or more frames.
    Zstd,
}

/// Why the layers of an image cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The content has another compression than the media type states.
    #[error("the layer is stated to be {stated}, but is {found}")]
    Mismatch {
        /// According to the media type.
        stated: Format,
        /// According to the content.
        found: Format,
    },
}

impl Format {
    /// Returns the format of content that begins with these bytes, at least four unless it is shorter.
    #[must_use]
    pub fn of_content(beginning: &[u8]) -> Self {
        match beginning {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a frame to skip.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Tar,
        }
    }

    /// Returns the format of content that is stated to have `stated`.
    ///
    /// # Errors
    /// [`FormatError::Mismatch`].
    pub(crate) fn checked(beginning: &[u8], stated: Option<Self>) -> Result<Self, FormatError> {
        let found = Self::of_content(beginning);
        match stated {
            Some(stated) if stated != found => Err(FormatError::Mismatch { stated, found }),
            _ => Ok(found),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tar => "an uncompressed tar archive",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_must_have_the_stated_format() {
        assert_eq!(Format::checked(&[0x1f, 0x8b, 8, 0], Some(Format::Gzip)), Ok(Format::Gzip));
        assert_eq!(Format::checked(b"bin/", None), Ok(Format::Tar));
        assert_eq!(Format::checked(b"", Some(Format::Tar)), Ok(Format::Tar));
        for (content, stated) in
            [(&b"bin/"[..], Format::Gzip), (&[0x28, 0xb5, 0x2f, 0xfd], Format::Tar), (b"", Format::Zstd)]
        {
            assert!(Format::checked(content, Some(stated)).is_err(), "{content:?}");
        }
    }
}
