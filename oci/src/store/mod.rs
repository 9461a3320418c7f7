//! A directory of images, shared by processes. Blobs are named by their digest, so a blob with its
//! final name is complete, verified and never changes.
//!
//! ```text
//! lock           flock: tags and holds change, or garbage is collected
//! version        format of the directory
//! blobs/sha256/  manifests, configurations, layers
//! tags.json      which references lead to which manifest
//! disks/         what callers built from an image, `<manifest digest>.<kind>`
//! partial/       unfinished files, each with a flock of the process that writes it
//! holds/         digests that a running process needs, each with a flock of that process
//! ```
//! A file receives its final name by rename(2), after fsync(2), in a process that has a [`Hold`] of
//! it. A process that is killed leaves files in `partial/` and `holds/`, which nothing reads except
//! the next download of the same blob. It may never delete a blob that a tag, a hold or the caller
//! names.

mod blobs;
mod collect;
mod disks;
mod error;
mod holds;
mod lock;
mod partial;
mod tags;

pub use collect::Collected;
pub use error::StoreError;
pub use tags::Tag;

pub use holds::Hold;
pub(crate) use partial::{Partial, Staged};

use crate::limits::Limits;
use error::Result;
use lock::FileLock;
use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The format that this version reads and writes.
const VERSION: &str = "1\n";

/// An open store. Clones share the directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
}

impl Store {
    /// Opens the store at `root`, creating its directories with mode 0700 if they are missing.
    ///
    /// # Errors
    /// Fails if a directory cannot be created, or if the store has another format.
    pub fn open(root: impl Into<PathBuf>, limits: Limits) -> Result<Self> {
        let store = Self { root: root.into(), limits };
        for name in ["", "blobs/sha256", "disks", "partial", "holds"] {
            let path = store.root.join(name);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|error| StoreError::io("create", path, error))?;
        }
        let path = store.root.join("version");
        match fs::read_to_string(&path) {
            Ok(version) if version == VERSION => {}
            Ok(version) => return Err(StoreError::Version(version.trim().chars().take(40).collect())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let _lock = store.lock()?;
                store.replace(&path, VERSION.as_bytes())?;
            }
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
        Ok(store)
    }

    /// Returns the limits that the store was opened with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Waits for the lock of the store, which is held for milliseconds.
    fn lock(&self) -> Result<FileLock> {
        let path = self.root.join("lock");
        FileLock::wait(&path).map_err(|error| StoreError::io("lock", path, error))
    }

    /// Replaces a small file by one with `content`.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        let mut staged = self.stage()?;
        staged.write(content)?;
        staged.publish_as(path)
    }
}

/// Makes the names in the directory of `path` durable.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| StoreError::io("write", parent, error))
}

#[cfg(test)]
mod tests;
