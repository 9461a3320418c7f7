//! An entry of an archive, independent of headers and files.

/// Maximum length of a path or link target in bytes (Linux `PATH_MAX` without its NUL).
pub const MAX_PATH: usize = 4095;

/// A file of a tree, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as the archive states it. It is hostile until it was checked.
    pub path: Vec<u8>,
    /// Kind of the file.
    pub kind: Kind,
    /// The low twelve bits of the mode.
    pub mode: u32,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the owner.
    pub gid: u32,
    /// Time at which the content last changed.
    pub modified: Timestamp,
    /// Extended attributes. The names include their prefix, which is `user.` unless the reader keeps
    /// all of them.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The kind of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File {
        /// Size in bytes, holes included.
        size: u64,
        /// Ranges of data, between which there are holes. None for a file without holes.
        extents: Option<Vec<Extent>>,
    },
    /// Directory.
    Directory,
    /// Symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name of the file of an earlier entry, which is named by its path in the archive.
    HardLink(Vec<u8>),
    /// Device file.
    Device {
        /// Block device, as opposed to character device.
        is_block: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Any other type in the header: extensions of some tar programs.
    Other(u8),
}

impl Kind {
    /// Returns how many bytes of content the archive stores for it.
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

/// A range of data in a file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset of the first byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Seconds and nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds, negative before the epoch.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// The totals of a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of entries.
    pub entries: u64,
    /// Size of all files in bytes, holes included.
    pub bytes: u64,
    /// Number of sockets, named pipes and devices that were omitted.
    pub left_out: u64,
    /// Number of extended attributes that the target's file system did not accept.
    pub attributes_lost: u64,
}
