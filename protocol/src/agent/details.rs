//! Details of files beyond [`FileEntry`], for E2B's clients: the target of a symbolic link, and the
//! metadata that a client gave a file, which is stored in its extended attributes `user.e2b.*`.

use super::file_entry::{FileChange, FileEntry, FileKind, FilePath};
use crate::capped;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Prefix of the extended attributes that are metadata.
pub const METADATA_PREFIX: &str = "user.e2b.";
/// Maximum length of a key in bytes: that of an attribute's name in Linux (255) without the prefix.
pub const MAX_METADATA_KEY: usize = 255 - METADATA_PREFIX.len();
/// Maximum size of the metadata of one file in bytes: values, keys, and the prefix of each.
pub const MAX_METADATA: usize = 4096;
/// Maximum number of files in one message that describes them.
pub const MAX_DETAILS: usize = 64;
/// Size of their paths and metadata at which the message is sent. It then fits the maximum size of
/// the agent's messages, whatever the size of the last file's.
pub const DETAILS_BUDGET: usize = 24 * 1024;
/// Maximum number of keys, which follows from the size.
const MAX_METADATA_KEYS: usize = MAX_METADATA / (METADATA_PREFIX.len() + 1);

/// Why a pair is not metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// A key is empty.
    #[error("metadata key must not be empty")]
    EmptyKey,
    /// A key is longer than Linux accepts.
    #[error("metadata key {0:?} exceeds {MAX_METADATA_KEY} bytes")]
    KeyTooLong(String),
    /// A key contains a NUL byte.
    #[error("metadata key {0:?} contains a NUL byte")]
    Nul(String),
    /// A key occurs twice.
    #[error("metadata key {0:?} is given twice")]
    Twice(String),
    /// The metadata exceeds the maximum size.
    #[error("total metadata size {0} exceeds {MAX_METADATA} bytes")]
    TooLarge(usize),
}

/// Metadata of a file: keys and values that one file can have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Pairs", into = "Pairs")]
pub struct FileMetadata {
    pairs: BTreeMap<String, String>,
    size: usize,
}

impl FileMetadata {
    /// Adds a pair, if the file can have it in addition to the existing ones.
    ///
    /// # Errors
    /// Every [`MetadataError`]. Nothing has changed then.
    pub fn insert(&mut self, key: String, value: String) -> Result<(), MetadataError> {
        if key.is_empty() {
            return Err(MetadataError::EmptyKey);
        }
        if key.len() > MAX_METADATA_KEY {
            return Err(MetadataError::KeyTooLong(key));
        }
        if key.contains('\0') {
            return Err(MetadataError::Nul(key));
        }
        if self.pairs.contains_key(&key) {
            return Err(MetadataError::Twice(key));
        }
        let size = self.size + METADATA_PREFIX.len() + key.len() + value.len();
        if size > MAX_METADATA {
            return Err(MetadataError::TooLarge(size));
        }
        self.size = size;
        self.pairs.insert(key, value);
        Ok(())
    }

    /// Returns keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns true if there is no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Returns the number of bytes that count towards [`MAX_METADATA`].
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

/// [`FileMetadata`] on the wire.
#[derive(Serialize, Deserialize)]
struct Pairs(#[serde(with = "capped::List::<MAX_METADATA_KEYS>")] Vec<Pair>);

#[derive(Serialize, Deserialize)]
struct Pair {
    #[serde(with = "capped::Line::<MAX_METADATA_KEY>")]
    key: String,
    #[serde(with = "capped::Line::<MAX_METADATA>")]
    value: String,
}

impl TryFrom<Pairs> for FileMetadata {
    type Error = MetadataError;

    fn try_from(Pairs(pairs): Pairs) -> Result<Self, MetadataError> {
        let mut metadata = Self::default();
        for Pair { key, value } in pairs {
            metadata.insert(key, value)?;
        }
        Ok(metadata)
    }
}

impl From<FileMetadata> for Pairs {
    fn from(metadata: FileMetadata) -> Self {
        Self(metadata.pairs.into_iter().map(|(key, value)| Pair { key, value }).collect())
    }
}

/// The final target of a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkTarget {
    /// The absolute path without links. If the link is broken, the path of the link itself.
    pub path: FilePath,
    /// The file at that path, or none if the link is broken.
    pub found: Option<FoundTarget>,
}

/// The file to which a symbolic link leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundTarget {
    /// Kind of the file, never a symbolic link.
    pub kind: FileKind,
    /// The low twelve bits of its mode.
    pub mode: u32,
}

/// All details of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDetails {
    /// The file itself, even if it is a symbolic link.
    pub entry: FileEntry,
    /// The target, only of a symbolic link.
    pub target: Option<LinkTarget>,
    /// Its metadata, or that of the target of a symbolic link. Programs in the guest can set pairs
    /// that do not fit [`FileMetadata`] or are not UTF-8. Those are omitted.
    pub metadata: FileMetadata,
}

/// A change and, if the host asked for it and the file exists, the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The change.
    pub change: FileChange,
    /// The details of the file soon afterwards, if it was created, written, or changed in its
    /// attributes.
    pub details: Option<Box<FileDetails>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_has_the_limits_of_a_file() {
        let mut metadata = FileMetadata::default();
        let mut add = |key: &str, value: &str| metadata.insert(key.into(), value.into());
        assert_eq!(add("", "x"), Err(MetadataError::EmptyKey));
        assert_eq!(add("a\0", "x"), Err(MetadataError::Nul("a\0".into())));
        let long = "k".repeat(MAX_METADATA_KEY + 1);
        assert_eq!(add(&long, ""), Err(MetadataError::KeyTooLong(long.clone())));
        assert_eq!(add("a", ""), Ok(()));
        assert_eq!(add("a", "b"), Err(MetadataError::Twice("a".into())));
        let left = MAX_METADATA - 2 * (METADATA_PREFIX.len() + 1);
        assert_eq!(add("b", &"x".repeat(left + 1)), Err(MetadataError::TooLarge(MAX_METADATA + 1)));
        assert_eq!(add("b", &"x".repeat(left)), Ok(()));
        assert_eq!((metadata.size(), metadata.iter().count()), (MAX_METADATA, 2));
        let sent = postcard::to_allocvec(&metadata).unwrap();
        assert_eq!(postcard::from_bytes::<FileMetadata>(&sent).unwrap(), metadata);
    }
}
