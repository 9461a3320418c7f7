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
    /// The content of the layer is not in the registry: the image refers to another source for it.
    #[error("layers of the type \"{}\" are not stored with their image", .0.escape_default())]
    Foreign(String),
    /// The media type is not that of a layer.
    #[error("unknown type of layer \"{}\"", .0.escape_default())]
    Unknown(String),
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
    /// Returns the format of layers of a media type of OCI or Docker.
    ///
    /// # Errors
    /// [`FormatError::Foreign`] and [`FormatError::Unknown`].
    pub fn from_media_type(media_type: &str) -> Result<Self, FormatError> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Self::Tar),
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Ok(Self::Gzip)
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                Ok(Self::Zstd)
            }
            foreign
                if foreign.starts_with("application/vnd.oci.image.layer.nondistributable.")
                    || foreign.starts_with("application/vnd.docker.image.rootfs.foreign.") =>
            {
                Err(FormatError::Foreign(foreign.to_owned()))
            }
            other => Err(FormatError::Unknown(other.to_owned())),
        }
    }

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
    fn media_types_of_layers_are_known_and_foreign_layers_are_refused() {
        let of = Format::from_media_type;
        assert_eq!(of("application/vnd.oci.image.layer.v1.tar+zstd"), Ok(Format::Zstd));
        assert_eq!(of("application/vnd.docker.image.rootfs.diff.tar.gzip"), Ok(Format::Gzip));
        assert_eq!(of("application/vnd.oci.image.layer.v1.tar"), Ok(Format::Tar));
        for foreign in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            assert!(matches!(of(foreign), Err(FormatError::Foreign(_))), "{foreign}");
        }
        assert!(matches!(of("application/vnd.oci.image.config.v1+json"), Err(FormatError::Unknown(_))));
    }

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
