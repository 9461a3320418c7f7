//! The journal of one apply, in the directory of the sandbox. Owns its bytes and how it is replaced: each
//! version is synced and renamed, so a reader finds the last complete one.

use crate::{
    beneath::{Root, look_at},
    review::layer::State,
};
use rustix::{
    fd::AsFd,
    fs::{OFlags, fstatvfs, fsync},
};
use sandboxvm_file_lock::{self as file_lock, Sharing};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Name of the journal in the directory of a sandbox. While it is there, an apply is not complete.
pub const JOURNAL: &str = "apply.journal";
const MAGIC: &[u8; 8] = b"svmwsap2";
const DIGEST: usize = 32;

/// How far an apply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// New contents are being written to the staging directory. The project is as it was.
    Staging,
    /// Steps are being done, and are finished by the next command.
    Applying,
    /// A step found a conflict: steps are being undone.
    Undoing,
    /// All steps are done. The staging directory is being removed.
    Cleaning,
}

/// What one step does to its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    Remove(State),
    RemoveDirectory,
    /// `inode` is that of the staged file, which has the content `new`.
    Create {
        inode: u64,
        new: State,
    },
    Replace {
        inode: u64,
        new: State,
        was: State,
    },
    Mode {
        from: u32,
        to: u32,
    },
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) action: Action,
}

/// Which directory a project is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    device: u64,
    file_system: u64,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(root: &Root) -> io::Result<Self> {
        let directory = root.directory(b"")?;
        let about = look_at(directory.as_fd(), b"")?;
        Ok(Self { device: about.device, file_system: fstatvfs(&directory)?.f_fsid, inode: about.inode })
    }

    /// Returns true if both are one directory. A device may have another number after the host booted, and not
    /// all file systems have an ID that stays.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let is_same_system = self.file_system != 0 && self.file_system == other.file_system;
        self.inode == other.inode && (self.device == other.device || is_same_system)
    }
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// Absolute path of the project, and what it has to be.
    pub(crate) root: Vec<u8>,
    pub(crate) identity: Identity,
    /// Name of the staging directory in the project.
    pub(crate) staging: Vec<u8>,
    pub(crate) phase: Phase,
    /// Number of steps, before they are complete.
    pub(crate) count: u64,
    pub(crate) steps: Vec<Entry>,
}

/// The place of the journal of one sandbox, locked.
#[derive(Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    _lock: OwnedFd,
}

impl Place {
    /// Locks the place, and waits for another apply of the same sandbox.
    pub(crate) fn lock(directory: &Path) -> io::Result<Self> {
        let lock = crate::beneath::open_plain(&directory.join("apply.lock"), OFlags::RDWR | OFlags::CREATE)?;
        file_lock::wait(Sharing::Exclusive, &lock)?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// Returns the directory of the sandbox.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self) -> PathBuf {
        self.directory.join(JOURNAL)
    }

    /// Reads the journal, if there is one.
    pub(crate) fn read(&self) -> io::Result<Option<Journal>> {
        let bytes = match fs::read(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
        let (content, digest) = bytes.split_at_checked(bytes.len().saturating_sub(DIGEST)).ok_or_else(damaged)?;
        if Sha256::digest(content)[..] != *digest {
            return Err(damaged());
        }
        let body = content.strip_prefix(MAGIC).ok_or_else(damaged)?;
        postcard::from_bytes(body).map(Some).map_err(|_| damaged())
    }

    /// Replaces the journal.
    pub(crate) fn write(&self, journal: &Journal) -> io::Result<()> {
        let new = self.directory.join("apply.journal.new");
        let encoded = postcard::to_extend(journal, MAGIC.to_vec()).map_err(io::Error::other)?;
        let mut file = File::create(&new)?;
        file.write_all(&encoded)?;
        file.write_all(&Sha256::digest(&encoded))?;
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        self.sync()
    }

    /// Removes the journal.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_file(self.path())?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fsync(File::open(&self.directory)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::Identity;

    #[test]
    fn a_project_is_recognised_by_its_file_system_too() {
        let project = Identity { device: 1, file_system: 2, inode: 3 };
        for same in [project, Identity { device: 9, ..project }, Identity { file_system: 9, ..project }] {
            assert!(project.is_same(&same), "{same:?}");
        }
        let other = Identity { device: 9, file_system: 9, ..project };
        assert!(!project.is_same(&other) && !project.is_same(&Identity { inode: 9, ..project }));
        let unknown = Identity { file_system: 0, ..project };
        assert!(!unknown.is_same(&Identity { device: 9, ..unknown }));
    }
}
