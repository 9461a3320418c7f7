//! One entry of an archive, as neither a header nor a file.

/// Longest path or link target in bytes (Linux `PATH_MAX` less its NUL).
pub const MAX_PATH: usize = 4095;

/// A file of a tree, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path as the archive states it: hostile until looked at.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The low twelve bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content last changed.
    pub modified: Timestamp,
    /// Extended attributes, names with their `user.`.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File {
        /// Bytes, holes included.
        size: u64,
        /// Where its data is, the rest being holes; nothing for a file without holes.
        extents: Option<Vec<Extent>>,
    },
    /// Directory.
    Directory,
    /// Symbolic link to this.
    Symlink(Vec<u8>),
    /// The same file as an entry before it, by its path in the archive.
    HardLink(Vec<u8>),
    /// Anything else, by its type in the header: devices, named pipes, what only some tar knows.
    Other(u8),
}

impl Kind {
    /// Bytes of content that the archive holds for it.
    #[must_use]
    pub fn stored(&self) -> u64 {
        match self {
            Self::File { extents: Some(extents), .. } => {
                extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.len))
            }
            Self::File { size, extents: None } => *size,
            _ => 0,
        }
    }
}

/// A run of data in a file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Seconds and nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Negative before the epoch.
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Entries.
    pub entries: u64,
    /// Bytes of files, holes included.
    pub bytes: u64,
    /// Sockets, named pipes and devices left out of an archive.
    pub left_out: u64,
    /// Extended attributes that the target's file system would not take.
    pub attributes_lost: u64,
}
