//! Garbage: blobs and disks that no tag, no running process and no caller needs, and unfinished
//! files of processes that ended.

use super::{Store, StoreError, error::Result, lock::FileLock};
use crate::{
    digest::Digest,
    limits::MAX_MANIFEST,
    manifest::{Manifest, ManifestError},
};
use std::{
    collections::HashSet,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Number of files.
    pub files: u64,
    /// Size of them in bytes.
    pub bytes: u64,
}

impl Store {
    /// Deletes all blobs and disks that belong neither to a tagged image nor to one of `keep`, which
    /// are digests of manifests, nor to an image that a running process transfers.
    ///
    /// # Errors
    /// Fails if a file cannot be read or deleted. Nothing is deleted if a manifest that is kept
    /// cannot be read, because the blobs of its image are unknown.
    pub fn collect(&self, keep: &[Digest]) -> Result<Collected> {
        self.collect_except(|| Ok(keep.to_vec()))
    }

    /// Like [`Self::collect`]. `keep` is asked under the lock of the store: what it does not name
    /// is held, or not begun.
    ///
    /// # Errors
    /// As [`Self::collect`], and if `keep` fails.
    pub fn collect_except(
        &self,
        keep: impl FnOnce() -> std::result::Result<Vec<Digest>, Box<dyn Error + Send + Sync>>,
    ) -> Result<Collected> {
        let _lock = self.lock()?;
        let keep = keep().map_err(StoreError::InUse)?;
        let mut live = self.held()?;
        let tags = self.tags()?;
        let roots: HashSet<_> = tags.iter().map(|tag| tag.manifest).chain(keep.iter().copied()).collect();
        for root in roots {
            let bytes = match self.read_document(root, MAX_MANIFEST) {
                Ok(bytes) => bytes,
                Err(StoreError::Missing(_)) => continue,
                Err(error) => return Err(error),
            };
            // An image that exceeds a limit of today was accepted with another one.
            let manifest = Manifest::parse(&bytes, &unlimited()).map_err(|error| self.unreadable(root, &error))?;
            live.insert(root);
            live.extend(manifest.blobs().iter().map(|blob| blob.digest));
        }
        let mut collected = Collected::default();
        for directory in ["disks", "blobs/sha256"] {
            self.delete(directory, &mut collected, |path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let digest = Digest::from_hex(name.split('.').next().unwrap_or_default());
                Ok(digest.is_none_or(|digest| !live.contains(&digest)))
            })?;
        }
        Ok(collected)
    }

    /// Deletes unfinished files of processes that ended. A download that was interrupted starts
    /// from its first byte after that.
    ///
    /// # Errors
    /// Fails if a file cannot be examined or deleted.
    pub fn collect_partial(&self) -> Result<Collected> {
        let mut collected = Collected::default();
        let mut locks = Vec::new();
        self.delete("partial", &mut collected, |path| {
            let lock = FileLock::try_existing(path).map_err(|error| StoreError::io("lock", path, error))?;
            let is_free = lock.is_some();
            // A lock is kept until the file is deleted.
            locks.truncate(0);
            locks.extend(lock);
            Ok(is_free)
        })?;
        Ok(collected)
    }

    fn unreadable(&self, digest: Digest, error: &ManifestError) -> StoreError {
        StoreError::Corrupt { path: self.blob_path(digest), problem: error.to_string() }
    }

    fn delete(
        &self,
        directory: &str,
        collected: &mut Collected,
        mut is_garbage: impl FnMut(&Path) -> Result<bool>,
    ) -> Result<()> {
        let directory = self.root.join(directory);
        let list = || fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>();
        for path in list().map_err(|error| StoreError::io("list", &directory, error))? {
            if !is_garbage(&path)? {
                continue;
            }
            let bytes = path.symlink_metadata().map_or(0, |metadata| metadata.len());
            match fs::remove_file(&path) {
                Ok(()) => {
                    collected.files += 1;
                    collected.bytes = collected.bytes.saturating_add(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io("delete", path, error)),
            }
        }
        Ok(())
    }
}

fn unlimited() -> crate::Limits {
    crate::Limits { layers: usize::MAX, layer_bytes: u64::MAX, image_bytes: u64::MAX, ..crate::Limits::default() }
}
