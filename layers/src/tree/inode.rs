//! One file of the tree, with its metadata.

use super::{InodeId, LayerNumber};
use std::{collections::BTreeMap, mem::size_of};

/// Metadata of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// The low twelve bits of the mode.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Time of the last change of the content, in seconds since the epoch.
    pub(crate) seconds: i64,
    /// Nanoseconds of it, below 1,000,000,000.
    pub(crate) nanoseconds: u32,
}

/// Where the content of a file lies in the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileExtent {
    /// First block.
    pub(crate) block: u32,
    /// Size in bytes.
    pub(crate) size: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub(crate) inode: InodeId,
    /// The last layer that has the name, or a name below it.
    pub(crate) layer: LayerNumber,
}

/// Content of a directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Box<[u8]>, Child>,
    pub(crate) parent: InodeId,
    /// Number of directories above.
    pub(crate) depth: u16,
    /// The layer whose entry set the metadata.
    pub(super) described_in: LayerNumber,
    /// The layer that hid the content of all lower ones.
    pub(super) opaque_in: LayerNumber,
}

/// Content of an inode.
#[derive(Debug)]
pub(crate) enum Content {
    File(FileExtent),
    Symlink(Box<[u8]>),
    Device {
        is_block: bool,
        /// In the encoding of the kernel's `new_encode_dev`.
        number: u32,
    },
    Fifo,
    Directory(Box<Directory>),
}

/// A file.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) metadata: Metadata,
    pub(crate) content: Content,
    /// Extended attributes, in the encoding of the image.
    pub(crate) attributes: Option<Box<[u8]>>,
    /// Number of names.
    pub(crate) links: u32,
}

impl Inode {
    /// Returns a file without a name.
    pub(crate) fn new(metadata: Metadata, content: Content, attributes: Option<Box<[u8]>>) -> Self {
        Self { metadata, content, attributes, links: 0 }
    }

    /// Returns a directory that no entry describes: the mode 0755, of root, at the epoch.
    pub(super) fn default_directory(parent: InodeId, depth: u16) -> Self {
        let directory = Directory { parent, depth, ..Directory::default() };
        Self::new(Metadata { mode: 0o755, ..Metadata::default() }, Content::Directory(Box::new(directory)), None)
    }

    /// Returns the content of a place without an inode.
    pub(super) fn unused() -> Self {
        Self::new(Metadata::default(), Content::Fifo, None)
    }

    pub(super) fn attribute_bytes(&self) -> usize {
        self.attributes.as_ref().map_or(0, |attributes| attributes.len())
    }

    /// Returns the estimated memory in bytes, without the names of a directory.
    pub(super) fn memory(&self) -> usize {
        let content = match &self.content {
            Content::Symlink(target) => target.len(),
            Content::Directory(_) => size_of::<Directory>(),
            Content::File(_) | Content::Device { .. } | Content::Fifo => 0,
        };
        size_of::<Self>() + content + self.attribute_bytes()
    }
}
