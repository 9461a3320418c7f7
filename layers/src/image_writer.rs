//! Writes an image from files that the caller describes, instead of from layers: for programs that
//! have a directory and not an archive. Owns the order of what goes to the image: content first, then
//! names. It reads nothing but the content that it is given, and it bounds what [`Limits`] bounds.

use crate::{
    erofs::{
        self,
        attributes::{self, AttributeError},
    },
    limits::{Exceeded, Limits},
    output::{BLOCK, Output, OutputError},
    tree::{Content, FileExtent, Inode, Metadata, ROOT, Tree, TreeError},
};
use sha2::{Digest, Sha256};
use std::{io, os::fd::OwnedFd};

/// Why a file cannot be part of an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The content cannot be read.
    #[error("cannot read the content: {0}")]
    Content(#[source] io::Error),
    /// The image cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The file does not fit the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The extended attributes are invalid.
    #[error(transparent)]
    Attributes(#[from] AttributeError),
}

impl From<Exceeded> for ImageError {
    fn from(error: Exceeded) -> Self {
        Self::Output(error.into())
    }
}

/// Content of a file, as it lies in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredContent(FileExtent);

impl StoredContent {
    /// Returns the offset of the content in the image in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        u64::from(self.0.block) * BLOCK
    }

    /// Returns the size of the content in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size
    }
}

/// Kind of a file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewKind {
    /// Directory.
    Directory,
    /// Regular file.
    File(StoredContent),
    /// Symbolic link to this target, which is not empty and has no NUL byte.
    Symlink(Vec<u8>),
    /// Hides the file of its name that lower layers of an overlay have: a character device 0:0.
    Whiteout,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInode {
    /// Kind of the file.
    pub kind: NewKind,
    /// The low twelve bits of the mode. Symbolic links have the mode 0777 anyway.
    pub mode: u16,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the owner.
    pub gid: u32,
    /// Time of the last change of the content, in seconds and nanoseconds since the epoch.
    pub modified: (i64, u32),
    /// Names and values of extended attributes. `user.*` and `security.capability` are kept.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Writes one image.
#[derive(Debug)]
pub struct ImageWriter {
    tree: Tree,
    output: Output,
    attribute_bytes: u32,
    digest: Sha256,
}

impl ImageWriter {
    /// Writes to an empty file. Of the limits, those of the image, its depth, attributes and metadata count.
    ///
    /// # Errors
    /// [`OutputError`], if the limit of the image is below one block.
    pub fn new(image: OwnedFd, limits: &Limits) -> Result<Self, OutputError> {
        let mut output = Output::new(image, limits.image_bytes);
        // The superblock has its block to itself.
        output.skip(BLOCK)?;
        let attribute_bytes = limits.attribute_bytes;
        Ok(Self { tree: Tree::new(limits), output, attribute_bytes, digest: Sha256::new() })
    }

    /// Stores what `read` returns, until it returns 0. `read` fills a part of its buffer, of at least one byte,
    /// and returns how many bytes that are.
    ///
    /// # Errors
    /// Those of `read`, and of writing the image.
    pub fn content(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<StoredContent, ImageError> {
        self.output.pad()?;
        let block = self.output.blocks();
        let begin = self.output.position();
        loop {
            let count = read(self.output.space()?).map_err(ImageError::Content)?;
            if count == 0 {
                let size = self.output.position() - begin;
                return Ok(StoredContent(FileExtent { block: if size == 0 { 0 } else { block }, size }));
            }
            self.output.advance(count)?;
        }
    }

    /// Gives the root directory its metadata.
    ///
    /// # Errors
    /// [`ImageError::Tree`], if it is not a directory, and [`ImageError::Attributes`].
    pub fn describe_root(&mut self, root: NewInode) -> Result<(), ImageError> {
        let inode = self.inode(b"", root)?;
        Ok(self.tree.describe_root(inode, 1)?)
    }

    /// Adds a file. Directories of its path that were not added before have the mode 0755 and belong to root.
    /// `path` has one component for each name.
    ///
    /// # Errors
    /// [`ImageError::Tree`] and [`ImageError::Attributes`].
    pub fn add(&mut self, path: &[&[u8]], new: NewInode) -> Result<(), ImageError> {
        let Some((name, above)) = path.split_last() else { return self.describe_root(new) };
        let inode = self.inode(&path.join(&b'/'), new)?;
        let directory = if above.is_empty() { ROOT } else { self.tree.make_directories(above, 1)? };
        Ok(self.tree.add(directory, name, inode, 1)?)
    }

    /// Writes the names and metadata, and returns the size of the image in bytes. The file is not synced.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn finish(self) -> Result<u64, OutputError> {
        let digest: [u8; 32] = self.digest.finalize().into();
        erofs::write(&self.tree, self.output, erofs::uuid(&digest))
    }

    fn inode(&mut self, path: &[u8], new: NewInode) -> Result<Inode, ImageError> {
        let content = match new.kind {
            NewKind::Directory => Content::Directory(Box::default()),
            NewKind::File(stored) => Content::File(stored.0),
            NewKind::Symlink(target) => Content::Symlink(target.into()),
            NewKind::Whiteout => Content::Device { is_block: false, number: 0 },
        };
        let is_symlink = matches!(content, Content::Symlink(_));
        let (seconds, nanoseconds) = new.modified;
        let metadata = Metadata {
            mode: if is_symlink { 0o777 } else { new.mode & 0o7777 },
            uid: new.uid,
            gid: new.gid,
            seconds,
            nanoseconds,
        };
        // The UUID tells images of different trees apart.
        self.digest.update((path.len() as u64).to_le_bytes());
        self.digest.update(path);
        self.digest.update(format!("{metadata:?}{:?}", if let Content::File(at) = content { Some(at) } else { None }));
        let (attributes, _) = attributes::encode(&new.attributes, self.attribute_bytes)?;
        Ok(Inode::new(metadata, content, attributes))
    }
}
