//! The content API as data: what a client asks of a volume, and what is answered. Frames are a length of 32 bits
//! (little endian) and JSON; a body follows as pieces with such a length, of which the last one is empty.

use serde::{Deserialize, Serialize};

/// Maximum size of a request or an answer, without its body, in bytes.
pub const MAX_FRAME: usize = 64 << 10;
/// Maximum size of one piece of a body in bytes.
pub const MAX_PIECE: usize = 1 << 20;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Describes a file.
    Describe {
        /// Its path in the volume.
        path: String,
    },
    /// Lists a directory.
    List {
        /// Its path.
        path: String,
        /// How many levels of directories.
        depth: u32,
    },
    /// Reads a file.
    Read {
        /// Its path.
        path: String,
    },
    /// Writes a file, whose content follows as a body.
    Write {
        /// Its path.
        path: String,
        /// Owner and permissions, if they are not to stay, or to be the usual ones.
        owner: SetOwner,
        /// Make missing directories.
        force: bool,
    },
    /// Makes a directory.
    MakeDirectory {
        /// Its path.
        path: String,
        /// Owner and permissions, if not the usual ones.
        owner: SetOwner,
        /// Make missing directories, and accept one that exists.
        force: bool,
    },
    /// Sets owner and permissions.
    SetOwner {
        /// Path of the file.
        path: String,
        /// What is set.
        owner: SetOwner,
    },
    /// Removes a file, or a directory with everything in it.
    Remove {
        /// Its path.
        path: String,
    },
}

impl Request {
    /// Returns true if it changes the volume.
    #[must_use]
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Describe { .. } | Self::List { .. } | Self::Read { .. })
    }
}

/// Owner and permissions, where they are stated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetOwner {
    /// User ID in sandboxes.
    pub uid: Option<u32>,
    /// Group ID in sandboxes.
    pub gid: Option<u32>,
    /// Permissions.
    pub mode: Option<u32>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// JSON of this length follows: an entry, or a list of entries.
    Json {
        /// Length in bytes.
        length: u64,
    },
    /// The content of a file follows, of this length.
    Content {
        /// Length in bytes.
        length: u64,
    },
    /// It was done, and there is nothing to say.
    Done,
    /// It was not done.
    Failed(Failure),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub why: Why,
    /// For people.
    pub message: String,
}

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// There is no such path.
    NotFound,
    /// There is such a path already.
    Exists,
    /// The request cannot be carried out for this path.
    Invalid,
    /// The volume, or the disk of the host, is full.
    NoSpace,
    /// The host failed.
    Internal,
}
