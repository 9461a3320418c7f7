//! The superblock.

/// Offset in the image.
pub(super) const OFFSET: u64 = 1024;
const LEN: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Times are those of the last change of the content (`EROFS_FEATURE_COMPAT_MTIME`).
const COMPAT_MTIME: u32 = 2;
const BLOCK_BITS: u8 = 12;

/// What the superblock states.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) metadata_block: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Encodes the superblock. It has no checksum, which the kernel does not need.
    pub(super) fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&COMPAT_MTIME.to_le_bytes());
        bytes[12] = BLOCK_BITS;
        bytes[14..16].copy_from_slice(&self.root.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.metadata_block.to_le_bytes());
        bytes[48..64].copy_from_slice(&self.uuid);
        bytes
    }
}
