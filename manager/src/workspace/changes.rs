//! The changes of a workspace, as a layer: from the guest while it runs, and from
//! `workspace/changes.tar` in the directory of the sandbox afterwards. The bytes are a guest's, and
//! hostile: this module bounds and counts them, and interprets nothing else.

use super::files::INDEX;
use crate::{
    guest::files::{DiskChanges, FileError, Files},
    home::directory::{DirectoryError, SandboxDirectory},
    sandbox::Sandbox,
};
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags, flock, mkdirat, openat, renameat, unlinkat},
    io::Errno,
};
use sandboxvm_archive::{Kind, ReadError, Reader};
use sandboxvm_protocol::machine::SlotNumber;
use std::{
    fs::File,
    io::{self, BufReader, Seek, Write},
    os::fd::OwnedFd,
    time::Duration,
};

/// Directory of the stored layer.
pub(crate) const DIRECTORY: &str = "workspace";
const LAYER: &str = "changes.tar";
/// The layer while it is being written.
const UNFINISHED: &str = ".changes.tar.new";
/// Interval at which a process looks whether another one has stored its changes.
const POLL: Duration = Duration::from_millis(20);
/// Prefix of the name of an entry that removes a file, and name of one that hides a directory's old
/// content (OCI image specification, layer.md).
const REMOVAL: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why the changes of a workspace were not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The guest did not provide them.
    #[error("cannot read the changes of the workspace: {0}")]
    Guest(#[from] FileError),
    /// What the guest sent is not a layer.
    #[error("the sandbox sent changes of its workspace that are not an archive: {0}")]
    Layer(#[from] ReadError),
    /// The file cannot be written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// The stored changes of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChanges {
    /// Size of the layer in bytes.
    pub bytes: u64,
    /// Number of files in it that are not directories. A file that was written with its old content
    /// counts as well.
    pub written: u64,
    /// Number of files and directories that were removed, or replaced by another kind of file.
    pub removed: u64,
}

/// Returns true if a directory of a sandbox has the changes of its workspace.
pub(crate) fn are_stored(directory: &SandboxDirectory) -> bool {
    directory.path().join(DIRECTORY).join(LAYER).symlink_metadata().is_ok()
}

impl Sandbox {
    /// Packs everything in which the workspace of the running sandbox differs from its slots, as
    /// [`Self::disk_changes`] does for the disk. `max_bytes` limits the size of the layer in bytes.
    ///
    /// # Errors
    /// Every [`FileError`], also if the sandbox has no workspace.
    pub async fn workspace_changes(&self, max_bytes: u64) -> Result<DiskChanges<'_>, FileError> {
        Files::of(self).workspace_changes(SlotNumber::FIRST, max_bytes).await
    }

    /// Stores the changes of the workspace in the directory of the running sandbox, in one step and
    /// durably, in place of those that were stored before. The file has at most `max_bytes` bytes.
    ///
    /// # Errors
    /// Every [`StoreError`]. What was stored before stays.
    pub async fn store_workspace_changes(&self, max_bytes: u64) -> Result<StoredChanges, StoreError> {
        let unfinished = Unfinished::create(&self.directory).await?;
        let mut changes = self.workspace_changes(max_bytes).await?;
        let mut file = &unfinished.file;
        while let Some(bytes) = changes.next().await? {
            file.write_all(&bytes).map_err(|error| self.directory.error("write", LAYER, error))?;
        }
        let stored = unfinished.count()?;
        unfinished.finish()?;
        Ok(stored)
    }

    /// Opens the stored changes of the workspace. Returns `None` if none were stored since the sandbox
    /// started.
    ///
    /// # Errors
    /// When the file exists and cannot be opened.
    pub fn stored_workspace_changes(&self) -> Result<Option<File>, DirectoryError> {
        let Some(directory) = open_directory(&self.directory)? else { return Ok(None) };
        match openat(&directory, LAYER, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.directory.error("open", LAYER, error)),
        }
    }

    /// Opens the index that came with the slots. Returns `None` if none did.
    ///
    /// # Errors
    /// When the file exists and cannot be opened.
    pub fn workspace_index(&self) -> Result<Option<File>, DirectoryError> {
        match self.directory.open_shared(INDEX) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the files in the slots of the workspace, bottom up.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn workspace_slots(&self) -> Result<Vec<File>, DirectoryError> {
        super::files::open(&self.directory, self.record.workspace.as_ref())
    }
}

/// Removes the stored changes: they are of a machine that another replaces.
pub(crate) fn forget(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    let Some(stored) = open_directory(directory)? else { return Ok(()) };
    match unlinkat(&stored, LAYER, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(directory.error("remove", LAYER, error)),
    }
}

fn open_directory(directory: &SandboxDirectory) -> Result<Option<OwnedFd>, DirectoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(directory.fd(), DIRECTORY, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(directory.error("open", DIRECTORY, error)),
    }
}

/// A layer that is being written. Dropping it removes it. No other process writes one meanwhile: its
/// descriptor of the directory has a lock.
#[derive(Debug)]
struct Unfinished<'d> {
    sandbox: &'d SandboxDirectory,
    directory: OwnedFd,
    file: File,
}

impl<'d> Unfinished<'d> {
    /// Waits until no other process stores changes. Cancel safe.
    async fn create(sandbox: &'d SandboxDirectory) -> Result<Self, DirectoryError> {
        match mkdirat(sandbox.fd(), DIRECTORY, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(sandbox.error("create", DIRECTORY, error)),
        }
        let gone = || sandbox.error("open", DIRECTORY, Errno::NOENT);
        let directory = open_directory(sandbox)?.ok_or_else(gone)?;
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => tokio::time::sleep(POLL).await,
                Err(error) => return Err(sandbox.error("lock", DIRECTORY, error)),
            }
        }
        // One that a killed process left.
        let _ = unlinkat(&directory, UNFINISHED, AtFlags::empty());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&directory, UNFINISHED, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| sandbox.error("create", LAYER, error))?;
        Ok(Self { sandbox, directory, file: file.into() })
    }

    /// Counts the entries of the layer, which must be a complete archive.
    fn count(&self) -> Result<StoredChanges, StoreError> {
        let fail = |error: io::Error| self.sandbox.error("read", LAYER, error);
        let mut file = &self.file;
        file.rewind().map_err(fail)?;
        let bytes = file.metadata().map_err(fail)?.len();
        let mut stored = StoredChanges { bytes, written: 0, removed: 0 };
        let mut reader = Reader::new(BufReader::new(file));
        while let Some(entry) = reader.next_entry()? {
            let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            match entry.kind {
                Kind::Directory => {}
                _ if name == OPAQUE => {}
                _ if name.starts_with(REMOVAL) => stored.removed += 1,
                _ => stored.written += 1,
            }
        }
        Ok(stored)
    }

    fn finish(self) -> Result<(), DirectoryError> {
        let synced = self.file.sync_all().map_err(|error| self.sandbox.error("sync", LAYER, error));
        synced?;
        let fail = |error| self.sandbox.error("rename", LAYER, error);
        renameat(&self.directory, UNFINISHED, &self.directory, LAYER).map_err(fail)?;
        rustix::fs::fsync(&self.directory).map_err(fail)?;
        self.sandbox.sync()
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // It has its final name by now, or is of no use.
        let _ = unlinkat(&self.directory, UNFINISHED, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_processes_never_write_one_layer() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let first = Unfinished::create(&directory).await.unwrap();
        let second = tokio::time::timeout(3 * POLL, Unfinished::create(&directory)).await;
        assert!(second.is_err(), "two layers are being written");
        (&first.file).write_all(b"first").unwrap();
        first.finish().unwrap();
        drop(Unfinished::create(&directory).await.unwrap());
        assert_eq!(std::fs::read(directory.path().join(DIRECTORY).join(LAYER)).unwrap(), b"first");
    }
}
