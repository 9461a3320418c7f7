//! The cache of layers: one directory for each project, with its lock beside it. Owns which files of it
//! count, when they are removed, and how a new index takes effect. It never changes a file that an index
//! names, so links to them stay valid.
//!
//! ```text
//! KEY.lock          held while the project is copied in; its time is that of the last use
//! KEY/index         the files of the last copy, and the names of its layers; replaced by rename
//! KEY/TIME.N-base.erofs, TIME.N-base.index, TIME.N-delta.erofs
//! ```
//! What a killed process left has no name in an index, and is removed by the next copy.

use crate::{
    beneath::open_plain,
    index::{Index, file::IndexError},
};
use rustix::{
    fd::OwnedFd,
    fs::{OFlags, Timestamps, futimens},
};
use sandboxvm_file_lock::{self as file_lock, Sharing};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system refuses it.
    #[error("cannot {step} \"{}\" in the cache: {error}", .path.display())]
    Io {
        /// What failed.
        step: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The index cannot be written.
    #[error(transparent)]
    Index(#[from] IndexError),
}

fn fail<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> CacheError {
    let path = path.to_owned();
    move |error| CacheError::Io { step, path, error: error.into() }
}

/// The place of one project, locked.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    lock: OwnedFd,
}

/// What the last copy of a project left.
#[derive(Debug)]
pub(super) struct Previous {
    /// The files of the lowest layer.
    pub(super) base: Index,
    /// The files of all layers.
    pub(super) index: Index,
}

impl Place {
    /// Locks the place of the project `key`, and waits for a process that has it.
    pub(super) fn lock(cache: &Path, key: &[u8]) -> Result<Self, CacheError> {
        let digest = Sha256::digest(key);
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let directory = cache.join(&name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(fail("create", cache))?;
        let path = cache.join(format!("{name}.lock"));
        let lock = lock(&path).map_err(fail("lock", &path))?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(fail("create", &directory))?;
        futimens(&lock, &now()).map_err(fail("mark", &path))?;
        Ok(Self { directory, lock })
    }

    /// Returns the lock, which keeps the files in place.
    pub(super) fn into_lock(self) -> OwnedFd {
        self.lock
    }

    /// Returns what the last copy left, if all of it is there and was written since the host booted.
    pub(super) fn previous(&self, boot: &str) -> Option<Previous> {
        let index = Index::read(&self.directory.join("index")).ok().filter(|index| index.boot == boot)?;
        let base = Index::read(&self.directory.join(base_index(index.layers.first()?))).ok()?;
        let is_there = |name: &String| self.directory.join(name).is_file();
        let is_usable = index.layers.iter().all(is_there) && index.has_layers(index.layers.len());
        is_usable.then_some(Previous { base, index })
    }

    /// Makes an index the one of this place. `is_base` says that it is also that of a new lowest layer.
    pub(super) fn publish(&self, index: &Index, is_base: bool) -> Result<PathBuf, CacheError> {
        let (new, path) = (self.directory.join("index.new"), self.directory.join("index"));
        let _ = fs::remove_file(&new);
        index.write(&new)?;
        if is_base && let Some(base) = index.layers.first() {
            let base = self.directory.join(base_index(base));
            fs::hard_link(&new, &base).map_err(fail("create", &base))?;
        }
        fs::rename(&new, &path).map_err(fail("rename", &new))?;
        Ok(path)
    }

    /// Removes every file that the index of this place does not name.
    pub(super) fn clean(&self) -> Result<(), CacheError> {
        let layers = Index::read(&self.directory.join("index")).map(|index| index.layers).unwrap_or_default();
        let base = layers.first().map(|base| base_index(base));
        for file in fs::read_dir(&self.directory).map_err(fail("list", &self.directory))? {
            let file = file.map_err(fail("list", &self.directory))?;
            let name = file.file_name().to_string_lossy().into_owned();
            if name == "index" || layers.contains(&name) || base.as_ref() == Some(&name) {
                continue;
            }
            fs::remove_file(file.path()).map_err(fail("remove", &file.path()))?;
        }
        Ok(())
    }
}

/// Returns the name of the index of a lowest layer.
fn base_index(layer: &str) -> String {
    format!("{}.index", layer.trim_end_matches(".erofs"))
}

/// Removes the places that were unused for the longest time, until no more than `max_bytes` and
/// `max_places` are left. Places in use stay.
pub(super) fn evict(cache: &Path, max_bytes: u64, max_places: usize) -> Result<(), CacheError> {
    let mut places = Vec::new();
    for file in fs::read_dir(cache).map_err(fail("list", cache))? {
        let path = file.map_err(fail("list", cache))?.path();
        let directory = path.with_extension("");
        if path.extension().is_none_or(|end| end != "lock") {
            continue;
        }
        let used = fs::metadata(&path).and_then(|about| about.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        places.push((used, path, size(&directory), directory));
    }
    places.sort();
    let (mut bytes, mut count) = (places.iter().map(|place| place.2).sum::<u64>(), places.len());
    for (_, path, size, directory) in places {
        if bytes <= max_bytes && count <= max_places {
            break;
        }
        let Ok(Some(_held)) = try_lock(&path) else { continue };
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("remove", &directory)(error)),
            _ => {}
        }
        fs::remove_file(&path).map_err(fail("remove", &path))?;
        bytes = bytes.saturating_sub(size);
        count -= 1;
    }
    Ok(())
}

/// Returns the size of a directory on disk in bytes.
fn size(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|about| about.blocks() * 512).sum()
}

/// Waits for the lock of a file, which is created if it is missing. It may be removed meanwhile.
fn lock(path: &Path) -> io::Result<OwnedFd> {
    loop {
        let file = open_plain(path, OFlags::RDWR | OFlags::CREATE)?;
        file_lock::wait(Sharing::Exclusive, &file)?;
        if file_lock::is_named(&file, path)? {
            return Ok(file);
        }
    }
}

/// Takes the lock of a file, if no process has it.
fn try_lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let file = open_plain(path, OFlags::RDWR | OFlags::CREATE)?;
    let is_taken = file_lock::try_take(Sharing::Exclusive, &file)? && file_lock::is_named(&file, path)?;
    Ok(is_taken.then_some(file))
}

fn now() -> Timestamps {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    Timestamps { last_access: now, last_modification: now }
}
