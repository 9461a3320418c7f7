//! A file: its path, kind and attributes, and the changes in a watched directory.
//!
//! The agent's reports about files come from a guest, so their size is limited here. Clients escape
//! paths and names before they show them.

use crate::capped;
use serde::{Deserialize, Serialize};

/// Maximum length of a path in bytes (Linux `PATH_MAX` without its NUL).
pub const MAX_PATH: usize = 4095;
/// Maximum length of the name of a user or group in bytes. A longer name is cut.
pub const MAX_OWNER: usize = 64;
/// Why bytes are not a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilePathError {
    /// It is empty.
    #[error("the path is empty")]
    Empty,
    /// It contains a NUL byte.
    #[error("the path contains a NUL byte")]
    Nul,
    /// It is longer than Linux accepts.
    #[error("the path has {0} bytes, and Linux accepts at most {MAX_PATH}")]
    TooLong(usize),
}

/// A path in the guest, 1 to [`MAX_PATH`] bytes without NUL. A relative path begins at the home of
/// the user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct FilePath(Vec<u8>);

impl FilePath {
    /// Returns the bytes, without a terminating NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for FilePath {
    type Error = FilePathError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, FilePathError> {
        match bytes.len() {
            0 => Err(FilePathError::Empty),
            len if len > MAX_PATH => Err(FilePathError::TooLong(len)),
            _ if bytes.contains(&0) => Err(FilePathError::Nul),
            _ => Ok(Self(bytes)),
        }
    }
}

impl TryFrom<&str> for FilePath {
    type Error = FilePathError;

    fn try_from(text: &str) -> Result<Self, FilePathError> {
        Self::try_from(text.as_bytes().to_vec())
    }
}

impl From<FilePath> for Vec<u8> {
    fn from(path: FilePath) -> Self {
        path.0
    }
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharacterDevice,
    /// Block device.
    BlockDevice,
}

/// Seconds and nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTime {
    /// Seconds; negative before the epoch.
    pub seconds: i64,
    /// Nanoseconds after that, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// A file without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its absolute path, as far as the path of the request was resolved.
    pub path: FilePath,
    /// Kind of the file.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permissions, set-user-ID, set-group-ID and sticky bit: the low twelve bits.
    pub mode: u32,
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Name of the user, or its number.
    #[serde(with = "capped::Text::<MAX_OWNER>")]
    pub owner: String,
    /// Name of the group, or its number.
    #[serde(with = "capped::Text::<MAX_OWNER>")]
    pub group: String,
    /// Time at which its content last changed.
    pub modified: FileTime,
    /// Target of a symbolic link.
    pub link_target: Option<FilePath>,
}

/// A change in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// The kind of change.
    pub kind: ChangeKind,
    /// The file, relative to the watched directory. None for the directory itself.
    pub path: Option<FilePath>,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// A file was created, or moved here.
    Created,
    /// The content of a file was written.
    Written,
    /// A file was removed.
    Removed,
    /// A file was moved away. If its new place is watched too, it is reported there as
    /// [`Self::Created`].
    Renamed,
    /// Mode, owner or times changed.
    AttributesChanged,
    /// Some changes are missing, because there were too many.
    Missed,
}
