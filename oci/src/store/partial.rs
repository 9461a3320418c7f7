//! Files without their final name: downloads, which a later process continues, and content whose
//! digest is not known before its end.

use super::{Hold, Store, StoreError, error::Result, lock::FileLock, sync_parent};
use crate::{
    digest::{Digest, Hasher},
    manifest::Blob,
};
use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// Time between two attempts to take over a download from another process.
const POLL: Duration = Duration::from_millis(100);

/// An unfinished download of a blob. It stays when it is dropped, to be continued.
#[derive(Debug)]
pub(crate) struct Partial {
    lock: FileLock,
    blob: Blob,
    hasher: Hasher,
    written: u64,
}

impl Store {
    /// Waits until no other process downloads the blob, then returns the unfinished download of it,
    /// or `None` if the store has the blob. Cancel safe.
    pub(crate) async fn partial(&self, blob: Blob) -> Result<Option<Partial>> {
        let path = self.root.join("partial").join(blob.digest.hex());
        loop {
            if self.has(blob)? {
                return Ok(None);
            }
            if let Some(lock) = FileLock::try_named(&path).map_err(|error| StoreError::io("lock", &path, error))? {
                // The other process may have published the blob in between.
                if self.has(blob)? {
                    let _ = fs::remove_file(&path);
                    return Ok(None);
                }
                let read = tokio::task::spawn_blocking(move || Partial::read(lock, blob)).await;
                return read.map_err(|_| StoreError::Cancelled)?.map(Some);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Creates a file for content whose digest is not known yet.
    pub(crate) fn stage(&self) -> Result<Staged> {
        Ok(Staged { lock: self.new_named("partial")?, hasher: Hasher::default(), written: 0, published: false })
    }
}

impl Partial {
    /// Reads what an earlier process left.
    fn read(lock: FileLock, blob: Blob) -> Result<Self> {
        let mut partial = Self { lock, blob, hasher: Hasher::default(), written: 0 };
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = partial.lock.file.read(&mut buffer).map_err(|error| partial.error("read", error))?;
            if count == 0 {
                return Ok(partial);
            }
            partial.hasher.update(&buffer[..count]);
            partial.written += count as u64;
            if partial.written > blob.size {
                partial.restart()?;
                return Ok(partial);
            }
        }
    }

    /// Returns the number of bytes that are there.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Returns true if all bytes are there.
    pub(crate) fn is_whole(&self) -> bool {
        self.written == self.blob.size
    }

    /// Discards all bytes.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let rewound = self.lock.file.set_len(0).and_then(|()| self.lock.file.seek(SeekFrom::Start(0)));
        rewound.map_err(|error| self.error("write", error))?;
        self.hasher = Hasher::default();
        self.written = 0;
        Ok(())
    }

    /// Appends bytes. A full disk removes the file, which frees what it occupies.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let actual = self.written.saturating_add(bytes.len() as u64);
        if actual > self.blob.size {
            return Err(StoreError::WrongSize { digest: self.blob.digest, expected: self.blob.size, actual });
        }
        if let Err(error) = self.lock.file.write_all(bytes).map_err(|error| self.error("write", error)) {
            if matches!(error, StoreError::Full { .. }) {
                self.discard();
            }
            return Err(error);
        }
        self.hasher.update(bytes);
        self.written = actual;
        Ok(())
    }

    /// Verifies the content and gives the file its final name. Content with a wrong digest is
    /// discarded.
    pub(crate) fn publish(self, store: &Store, _: &Hold) -> Result<()> {
        let actual = self.hasher.clone().finish();
        if actual != self.blob.digest || self.written != self.blob.size {
            self.discard();
            return Err(StoreError::WrongDigest { expected: self.blob.digest, actual });
        }
        finish(&self.lock, &store.blob_path(self.blob.digest))
    }

    fn discard(&self) {
        // It is only worth disk space: a later download verifies what it finds.
        let _ = fs::remove_file(&self.lock.path);
    }

    fn error(&self, what: &'static str, source: std::io::Error) -> StoreError {
        StoreError::io(what, &self.lock.path, source)
    }
}

/// A new file, removed when it is dropped before it was published.
#[derive(Debug)]
pub(crate) struct Staged {
    lock: FileLock,
    hasher: Hasher,
    written: u64,
    published: bool,
}

impl Staged {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.lock.file.write_all(bytes).map_err(|error| StoreError::io("write", &self.lock.path, error))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Returns the digest and size of what was written.
    pub(crate) fn blob(&self) -> Blob {
        Blob { digest: self.hasher.clone().finish(), size: self.written }
    }

    /// Returns the number of bytes that were written.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Reads the first `maximum` bytes.
    pub(crate) fn beginning(&self, maximum: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = fs::File::open(&self.lock.path).and_then(|file| file.take(maximum).read_to_end(&mut bytes));
        read.map_err(|error| StoreError::io("read", &self.lock.path, error))?;
        Ok(bytes)
    }

    pub(super) fn path(&self) -> &Path {
        &self.lock.path
    }

    /// Gives the file its name as a blob.
    pub(crate) fn publish(self, store: &Store, _: &Hold) -> Result<Digest> {
        let digest = self.blob().digest;
        self.publish_as(&store.blob_path(digest))?;
        Ok(digest)
    }

    /// Gives the file this name, replacing a file that has it.
    pub(super) fn publish_as(mut self, path: &Path) -> Result<()> {
        finish(&self.lock, path)?;
        self.published = true;
        Ok(())
    }

    /// Gives the file that now has the staged name its final name. It may be another one than was
    /// created, because programs replace files.
    pub(super) fn publish_replaced(mut self, path: &Path) -> Result<()> {
        let synced = fs::File::open(self.path()).and_then(|file| file.sync_all());
        synced.map_err(|error| StoreError::io("write", self.path(), error))?;
        rename(self.path(), path)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.lock.path);
        }
    }
}

fn finish(lock: &FileLock, path: &Path) -> Result<()> {
    lock.file.sync_all().map_err(|error| StoreError::io("write", &lock.path, error))?;
    rename(&lock.path, path)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| StoreError::io("create", PathBuf::from(to), error))?;
    sync_parent(to)
}
