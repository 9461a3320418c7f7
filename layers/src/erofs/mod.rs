//! The image: EROFS (Linux fs/erofs/erofs_fs.h) without compression, which Linux mounts since 5.4.
//!
//! ```text
//! block 0      superblock at 1024
//! block 1...   content of files, in the order of the layers; blocks of files that did not stay are holes
//! ...          blocks of directories, and long targets of symbolic links
//! meta_blkaddr inodes with their attributes; the rest of a directory, or the target of a symbolic link,
//!              follows its inode
//! ```
//! Owns the format and knows nothing of archives. The same tree gives the same bytes.

pub(crate) mod attributes;
mod directory;
mod image;
mod inode;
mod kind;
mod superblock;

pub(crate) use image::write;

/// Returns the UUID of an image: of version 8, from a digest of what it is made from.
pub(crate) fn uuid(digest: &[u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
