//! Blobs with their final names.

use super::{Hold, Store, StoreError, error::Result};
use crate::{digest::Digest, manifest::Blob};
use rustix::fs::{CWD, Mode, OFlags};
use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::PathBuf,
};

impl Store {
    pub(super) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Opens a blob for reading. Its content was verified when it was stored, and never changes.
    ///
    /// # Errors
    /// Fails with [`StoreError::Missing`] if the store does not have it.
    pub fn open_blob(&self, digest: Digest) -> Result<File> {
        let path = self.blob_path(digest);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(rustix::io::Errno::NOENT) => Err(StoreError::Missing(digest)),
            Err(error) => Err(StoreError::io("open", path, error)),
        }
    }

    /// Returns true if the store has a blob.
    pub(crate) fn has(&self, blob: Blob) -> Result<bool> {
        let path = self.blob_path(blob.digest);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.len() == blob.size => Ok(true),
            // The digest was verified, so the source states a wrong size.
            Ok(metadata) => {
                Err(StoreError::WrongSize { digest: blob.digest, expected: blob.size, actual: metadata.len() })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("examine", path, error)),
        }
    }

    /// Reads a document of at most `maximum` bytes, and verifies it again.
    pub(crate) fn read_document(&self, digest: Digest, maximum: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.open_blob(digest)?.take(maximum + 1).read_to_end(&mut bytes);
        read.map_err(|error| StoreError::io("read", self.blob_path(digest), error))?;
        if bytes.len() as u64 > maximum {
            return Err(StoreError::TooLong { digest, maximum });
        }
        match Digest::of(&bytes) {
            actual if actual == digest => Ok(bytes),
            actual => Err(StoreError::WrongDigest { expected: digest, actual }),
        }
    }

    /// Stores a document, and returns its digest.
    pub(crate) fn write_document(&self, hold: &Hold, bytes: &[u8]) -> Result<Digest> {
        let mut staged = self.stage()?;
        staged.write(bytes)?;
        staged.publish(self, hold)
    }
}
