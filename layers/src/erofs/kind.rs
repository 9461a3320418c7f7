//! Types of files, as directories and inodes state them.

use crate::tree::Content;

/// Type of a file in a directory (Linux `FT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    Character = 3,
    Block = 4,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    pub(super) fn of(content: &Content) -> Self {
        match content {
            Content::File(_) => Self::Regular,
            Content::Directory(_) => Self::Directory,
            Content::Device { is_block: false, .. } => Self::Character,
            Content::Device { is_block: true, .. } => Self::Block,
            Content::Fifo => Self::Fifo,
            Content::Symlink(_) => Self::Symlink,
        }
    }

    /// Returns the bits of the mode.
    pub(super) fn mode(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Character => 0o020_000,
            Self::Block => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }
}
