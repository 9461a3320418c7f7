//! Files that callers build from an image, such as a file system of its layers. The store does not
//! know what they contain: it gives each its name when it is complete, and deletes it together with
//! its image.

use super::{Hold, Store, StoreError, error::Result};
use crate::{digest::Digest, limits::MAX_MANIFEST, manifest::Manifest};
use std::{
    error,
    path::{Path, PathBuf},
};

impl Store {
    /// Returns the path that the disk of an image has when it was built. `kind` becomes the end of
    /// its name: lower-case letters, digits, `-`.
    ///
    /// # Panics
    /// If `kind` has other characters, or none.
    #[must_use]
    pub fn disk_path(&self, manifest: Digest, kind: &str) -> PathBuf {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!(!kind.is_empty() && kind.bytes().all(is_plain), "the kind of a disk is a plain name");
        self.root.join("disks").join(format!("{}.{kind}", manifest.hex()))
    }

    /// Returns the path of the disk of an image, and a hold that keeps image and disk until the caller has
    /// opened it and noted what it uses. Builds the disk first if it does not exist. `build`
    /// writes to the path that it receives, which is an empty file, or replaces it. Two processes that build the same disk do so twice, and the later one is kept.
    /// Blocks the thread.
    ///
    /// # Errors
    /// Fails with [`StoreError::Missing`] if the store does not have the image, and with
    /// [`StoreError::Disk`] if `build` fails. No file remains then.
    ///
    /// # Panics
    /// If `kind` is not a plain name, as for [`Self::disk_path`].
    pub fn disk(
        &self,
        manifest: Digest,
        kind: &str,
        build: impl FnOnce(&Path) -> std::result::Result<(), Box<dyn error::Error + Send + Sync>>,
    ) -> Result<(PathBuf, Hold)> {
        let path = self.disk_path(manifest, kind);
        let parsed = Manifest::parse(&self.read_document(manifest, MAX_MANIFEST)?, &self.limits)
            .map_err(|error| StoreError::Corrupt { path: self.blob_path(manifest), problem: error.to_string() })?;
        let blobs = parsed.blobs();
        let hold = self.hold(&blobs.iter().map(|blob| blob.digest).chain([manifest]).collect::<Vec<_>>())?;
        if path.exists() {
            return Ok((path, hold));
        }
        // The image may have been removed before it was held.
        self.open_blob(manifest)?;
        if let Some(missing) = blobs.iter().find(|blob| !self.has(**blob).unwrap_or(false)) {
            return Err(StoreError::Missing(missing.digest));
        }
        let staged = self.stage()?;
        build(staged.path()).map_err(|source| StoreError::Disk { manifest, source })?;
        staged.publish_replaced(&path)?;
        Ok((path, hold))
    }
}
