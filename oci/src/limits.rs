//! How much an image may consume. Every number that a registry or archive states is compared with
//! these before memory or disk is used.

/// Maximum size in bytes of a manifest or index. Registries have the same limit.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Maximum size in bytes of an image's configuration.
pub(crate) const MAX_CONFIG: u64 = 4 << 20;

/// Limits of images and of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of layers of an image. Docker builds at most 127, and the layer process takes 250.
    pub layers: usize,
    /// Maximum size in bytes of one layer as it is transferred.
    pub layer_bytes: u64,
    /// Maximum size in bytes of all layers of an image as they are transferred.
    pub image_bytes: u64,
    /// Maximum number of files of an archive that may belong to images. Each is an open file while
    /// the archive is read.
    pub archive_members: usize,
    /// Maximum number of tags of a store.
    pub tags: usize,
}

impl Default for Limits {
    /// Returns 250 layers, 16 GiB for a layer, 32 GiB for an image, 600 files of an archive and
    /// 10,000 tags.
    fn default() -> Self {
        Self { layers: 250, layer_bytes: 16 << 30, image_bytes: 32 << 30, archive_members: 600, tags: 10_000 }
    }
}
