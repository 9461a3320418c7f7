//! Inodes, in their extended form of 64 bytes, which has full owners and times.

use super::{attributes, directory, kind::FileType};
use crate::{
    output::BLOCK,
    tree::{Content, Inode, InodeId},
};

/// Size in bytes.
pub(super) const LEN: usize = 64;
/// Unit of inode numbers in bytes.
pub(super) const SLOT: u64 = 32;

/// How the metadata of an inode is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Size of the content in bytes.
    pub(super) size: u64,
    /// Number of blocks of directory entries or of a target.
    pub(super) blocks: u64,
    /// Bytes of the content that follow the inode.
    pub(super) tail: usize,
    /// Bytes of the inode and its attributes.
    pub(super) head: usize,
}

impl Shape {
    pub(super) fn of(id: InodeId, inode: &Inode) -> Self {
        let head = LEN + inode.attributes.as_ref().map_or(0, |attributes| attributes.len());
        let size = match &inode.content {
            Content::File(extent) => return Self { size: extent.size, blocks: 0, tail: 0, head },
            Content::Directory(content) => directory::size(&directory::names(id, content)),
            Content::Symlink(target) => target.len() as u64,
            Content::Device { .. } | Content::Fifo => 0,
        };
        // Less than a block.
        let tail = usize::try_from(size % BLOCK).unwrap_or(0);
        // One byte more, since the kernel finds the end of a directory's last name by its NUL.
        if tail > 0 && head + tail < BLOCK as usize {
            Self { size, blocks: size / BLOCK, tail, head }
        } else {
            Self { size, blocks: size.div_ceil(BLOCK), tail: 0, head }
        }
    }

    /// Returns the offset, not below `offset`, at which it lies: within one block, unless its
    /// attributes are longer.
    pub(super) fn place(&self, offset: u64) -> u64 {
        let offset = offset.next_multiple_of(SLOT);
        let len = self.len();
        let is_within = offset % BLOCK + len <= BLOCK;
        if is_within { offset } else { offset.next_multiple_of(BLOCK) }
    }

    /// Returns its size in the metadata in bytes.
    pub(super) fn len(&self) -> u64 {
        (self.head + self.tail + usize::from(self.tail > 0)) as u64
    }
}

/// Encodes an inode. `block` is the first block of its content, `links` the number of its names.
pub(super) fn encode(inode: &Inode, shape: &Shape, number: u32, block: u32, links: u32) -> [u8; LEN] {
    const EXTENDED: u16 = 1;
    const FLAT_INLINE: u16 = 2;
    let layout = if shape.tail > 0 { FLAT_INLINE } else { 0 };
    let kind = FileType::of(&inode.content);
    let union = if let Content::Device { number, .. } = inode.content { number } else { block };
    let mut bytes = [0; LEN];
    bytes[0..2].copy_from_slice(&(EXTENDED | layout << 1).to_le_bytes());
    bytes[2..4].copy_from_slice(&attributes::count(inode.attributes.as_deref()).to_le_bytes());
    bytes[4..6].copy_from_slice(&(kind.mode() | inode.metadata.mode & 0o7777).to_le_bytes());
    bytes[8..16].copy_from_slice(&shape.size.to_le_bytes());
    bytes[16..20].copy_from_slice(&union.to_le_bytes());
    bytes[20..24].copy_from_slice(&number.to_le_bytes());
    bytes[24..28].copy_from_slice(&inode.metadata.uid.to_le_bytes());
    bytes[28..32].copy_from_slice(&inode.metadata.gid.to_le_bytes());
    bytes[32..40].copy_from_slice(&inode.metadata.seconds.to_le_bytes());
    bytes[40..44].copy_from_slice(&inode.metadata.nanoseconds.to_le_bytes());
    bytes[44..48].copy_from_slice(&links.to_le_bytes());
    bytes
}
