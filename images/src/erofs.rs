//! Checks that a file is a whole EROFS image, by its superblock (Linux fs/erofs/erofs_fs.h), before a guest is booted
//! from it. The guest's kernel checks every block it reads; here the point is a clear message.

use std::{fs::File, io, os::unix::fs::FileExt};

const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_LEN: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;

/// What the superblock states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErofsImage {
    /// Bytes the file system takes, its blocks times their size.
    pub bytes: u64,
    /// The volume's UUID.
    pub uuid: [u8; 16],
}

/// Why a file is not a usable image.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// Zero bytes.
    #[error("the file is empty")]
    Empty,
    /// Ends before its superblock does.
    #[error("the file is truncated: {0} bytes cannot hold a superblock")]
    NoSuperblock(u64),
    /// Some other file.
    #[error("not an EROFS image")]
    NotErofs,
    /// Block size that no kernel mounts.
    #[error("invalid block size of 2^{0} bytes")]
    BlockSize(u8),
    /// Ends before its last block does.
    #[error("the file is truncated: it has {size} of {need} bytes")]
    Truncated {
        /// Size of the file in bytes.
        size: u64,
        /// Size of the file system in bytes.
        need: u64,
    },
    /// Reading failed.
    #[error("cannot read the file: {0}")]
    Io(#[from] io::Error),
}

/// Reads and checks the superblock of `file`.
///
/// # Errors
/// Every [`ErofsError`].
pub fn check(file: &File) -> Result<ErofsImage, ErofsError> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Err(ErofsError::Empty);
    }
    let mut superblock = [0; SUPERBLOCK_LEN];
    match file.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ErofsError::NoSuperblock(size)),
        Err(error) => return Err(error.into()),
    }
    let u32_at =
        |at: usize| u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]);
    if u32_at(0) != MAGIC {
        return Err(ErofsError::NotErofs);
    }
    // blkszbits: 512 bytes to 64 KiB.
    let block_bits = superblock[12];
    if !(9..=16).contains(&block_bits) {
        return Err(ErofsError::BlockSize(block_bits));
    }
    let need = u64::from(u32_at(36)) << block_bits;
    if need > size || need == 0 {
        return Err(ErofsError::Truncated { size, need });
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&superblock[48..64]);
    Ok(ErofsImage { bytes: need, uuid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(blocks: u32) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[1024..1028].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[1024 + 12] = 12;
        bytes[1024 + 36..1024 + 40].copy_from_slice(&blocks.to_le_bytes());
        bytes[1024 + 48..1024 + 64].copy_from_slice(&[7; 16]);
        bytes
    }

    fn checked(bytes: &[u8]) -> Result<ErofsImage, ErofsError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check(&file)
    }

    #[test]
    fn a_whole_image_passes() {
        assert_eq!(checked(&image(2)).unwrap(), ErofsImage { bytes: 8192, uuid: [7; 16] });
    }

    #[test]
    fn bad_images_are_told_apart() {
        assert!(matches!(checked(b""), Err(ErofsError::Empty)));
        assert!(matches!(checked(&[0; 1100]), Err(ErofsError::NoSuperblock(1100))));
        assert!(matches!(checked(&[0; 4096]), Err(ErofsError::NotErofs)));
        assert!(matches!(checked(&image(2)[..8191]), Err(ErofsError::Truncated { size: 8191, need: 8192 })));
        assert!(matches!(checked(&image(u32::MAX)), Err(ErofsError::Truncated { .. })));
        assert!(matches!(checked(&image(0)), Err(ErofsError::Truncated { .. })));
        let mut odd = image(2);
        odd[1024 + 12] = 200;
        assert!(matches!(checked(&odd), Err(ErofsError::BlockSize(200))));
    }
}
