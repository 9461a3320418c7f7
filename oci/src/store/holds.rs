//! Holds: the digests that a running process needs, so that no other process deletes them as
//! garbage between their publication and their tag. A hold is recorded before its owner looks which
//! blobs exist, so none of those that it sees can vanish.

use super::{Store, StoreError, error::Result, lock::FileLock};
use crate::digest::Digest;
use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Maximum size in bytes of a hold: some thousand digests.
const MAX_HOLD: u64 = 1 << 20;

/// A recorded hold. Dropping its last clone ends the hold.
#[derive(Debug, Clone)]
pub struct Hold {
    _recorded: Arc<Recorded>,
}

#[derive(Debug)]
struct Recorded {
    lock: FileLock,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // A file that stays is deleted when garbage is collected.
        let _ = fs::remove_file(&self.lock.path);
    }
}

impl Store {
    /// Keeps the blobs with these digests, whether they exist yet or not.
    pub(crate) fn hold(&self, digests: &[Digest]) -> Result<Hold> {
        let _lock = self.lock()?;
        let mut lock = self.new_named("holds")?;
        let text: String = digests.iter().map(|digest| format!("{digest}\n")).collect();
        let written = lock.file.write_all(text.as_bytes());
        written.map_err(|error| StoreError::io("write", &lock.path, error))?;
        Ok(Hold { _recorded: Arc::new(Recorded { lock }) })
    }

    /// Returns everything that running processes hold, and deletes the holds of others. The caller
    /// has the lock of the store.
    pub(super) fn held(&self) -> Result<HashSet<Digest>> {
        let directory = self.root.join("holds");
        let mut held = HashSet::new();
        let entries = fs::read_dir(&directory).map_err(|error| StoreError::io("list", &directory, error))?;
        for entry in entries {
            let path = entry.map_err(|error| StoreError::io("list", &directory, error))?.path();
            let fail = |error| StoreError::io("read", &path, error);
            if FileLock::try_existing(&path).map_err(fail)?.is_some() {
                let _ = fs::remove_file(&path);
                continue;
            }
            let mut text = String::new();
            match fs::File::open(&path).and_then(|file| file.take(MAX_HOLD).read_to_string(&mut text)) {
                Ok(_) => held.extend(text.lines().filter_map(|line| line.parse::<Digest>().ok())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(fail(error)),
            }
        }
        Ok(held)
    }

    /// Creates a locked file with a new name in a directory of the store.
    pub(super) fn new_named(&self, directory: &str) -> Result<FileLock> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(directory).join(format!("{}-{number}.new", std::process::id()));
            match FileLock::try_named(&path) {
                // A process of the same ID, which was killed, may have left a file of this name.
                Ok(Some(lock)) => {
                    lock.file.set_len(0).map_err(|error| StoreError::io("write", &path, error))?;
                    return Ok(lock);
                }
                Ok(None) => {}
                Err(error) => return Err(StoreError::io("create", path, error)),
            }
        }
    }
}
