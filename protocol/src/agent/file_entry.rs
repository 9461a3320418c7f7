//! What a file is: its path, kind and attributes, and what changes in a watched directory.
//!
//! What the agent says of files is a guest's word: capped here, and paths and names are for the client, which escapes them
//! before it shows them.

use crate::capped;
use serde::{Deserialize, Serialize};

/// Longest path in bytes (Linux `PATH_MAX` less its NUL).
pub const MAX_PATH: usize = 4095;
/// Cap on the name of a user or group, in bytes; a longer one is cut.
pub const MAX_OWNER: usize = 64;
/// Why bytes are no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilePathError {
    /// Nothing at all.
    #[error("the path is empty")]
    Empty,
    /// Contains a NUL byte.
    #[error("the path contains a NUL byte")]
    Nul,
    /// Longer than Linux takes.
    #[error("the path has {0} bytes, and Linux accepts at most {MAX_PATH}")]
    TooLong(usize),
}

/// A path in the guest, 1 to [`MAX_PATH`] bytes without NUL. One that does not begin at the root begins at the home of
/// the user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct FilePath(Vec<u8>);

impl FilePath {
    /// The bytes, without a terminating NUL.
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

/// What there is to know of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its absolute path, as far as the request's was resolved.
    pub path: FilePath,
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permissions, set-user-ID, set-group-ID and sticky bit: the low twelve bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The user's name, or its number again.
    #[serde(with = "capped::Text::<MAX_OWNER>")]
    pub owner: String,
    /// The group's name, or its number again.
    #[serde(with = "capped::Text::<MAX_OWNER>")]
    pub group: String,
    /// When its content last changed.
    pub modified: FileTime,
    /// What a symbolic link points to.
    pub link_target: Option<FilePath>,
}

/// Something happened in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// What.
    pub kind: ChangeKind,
    /// To what, relative to the watched directory; nothing for the directory itself.
    pub path: Option<FilePath>,
}

/// What happens to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is there now: made, or moved here.
    Created,
    /// Its content was written to.
    Written,
    /// It is gone.
    Removed,
    /// It was moved away. If the new place is watched too, it is reported as [`Self::Created`].
    Renamed,
    /// Mode, owner or times changed.
    AttributesChanged,
    /// There were more changes than can be reported: some are missing here.
    Missed,
}
