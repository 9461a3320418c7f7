//! The limits of one conversion. Owns their defaults; every one of them is enforced where the thing
//! that it limits is counted.

use serde::{Deserialize, Serialize};

/// Maximum number of layers, whatever the limits say: their descriptors come in one packet, which
/// carries 253 of them (`SCM_MAX_FD`).
pub const MAX_LAYERS: usize = 250;

/// What a conversion may use. All of it counts for all layers together unless a field says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Maximum number of uncompressed bytes that are read. Default: 64 GiB.
    pub unpacked_bytes: u64,
    /// Maximum size of the image in bytes, holes included, at most 16 TiB. Default: 64 GiB.
    pub image_bytes: u64,
    /// Maximum ratio of uncompressed to compressed bytes of one layer. Default: 250. Deflate reaches
    /// 1032 and only for content that is nearly constant.
    pub ratio: u32,
    /// Number of uncompressed bytes of one layer up to which its ratio is not limited. Default: 1 GiB.
    pub ratio_from: u64,
    /// Maximum window of zstd in bytes. Default: 128 MiB, which is that of `zstd --ultra -22`.
    pub zstd_window: u64,
    /// Maximum number of archive entries. Default: 4,000,000.
    pub entries: u64,
    /// Maximum number of directories above a file, those behind symbolic links included. Default: 256.
    pub depth: u16,
    /// Maximum size in bytes of the extended attributes of one file, names included; at most 240 KiB.
    /// Default: 64 KiB.
    pub attribute_bytes: u32,
    /// Maximum memory in bytes for names and metadata. Default: 1 GiB. An empty file takes about 170 bytes.
    pub metadata_bytes: u64,
    /// Maximum processor time in seconds, which only a process enforces. Default: 3600.
    pub cpu_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 64 << 30,
            image_bytes: 64 << 30,
            ratio: 250,
            ratio_from: 1 << 30,
            zstd_window: 128 << 20,
            entries: 4_000_000,
            depth: 256,
            attribute_bytes: 64 << 10,
            metadata_bytes: 1 << 30,
            cpu_seconds: 3600,
        }
    }
}

/// A limit that was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {what} exceeds the limit of {limit}")]
pub struct Exceeded {
    /// What was counted, with its unit.
    pub what: &'static str,
    /// The limit.
    pub limit: u64,
}

/// Returns an error if `value` is above `limit`.
///
/// # Errors
/// [`Exceeded`].
pub(crate) fn check(what: &'static str, value: u64, limit: u64) -> Result<(), Exceeded> {
    if value > limit { Err(Exceeded { what, limit }) } else { Ok(()) }
}
