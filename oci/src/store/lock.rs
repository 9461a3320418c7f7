//! Every advisory lock (flock(2)) of a store. The kernel releases a lock when its holder ends,
//! however it ends.
//!
//! | file | protects | held for |
//! |---|---|---|
//! | a file in `partial/` | writing that file | a download |
//! | `lock` | tags, the list of holds, collecting garbage | milliseconds |
//! | a file in `holds/` | nothing; shows that its process lives | a pull or load |
//!
//! A task waits for `lock` while it may hold the others, and for no other lock while it holds
//! `lock`. It has at most one lock in `partial/`.

use rustix::fs::{CWD, Mode, OFlags};
use sandboxvm_file_lock::{self as flock, Sharing};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// A file and its exclusive lock. Dropping it releases the lock.
#[derive(Debug)]
pub(super) struct FileLock {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).map(File::from)?)
}

impl FileLock {
    /// Opens the file at `path`, creating it with mode 0600, and waits for its lock. Only for a
    /// file that is never deleted.
    pub(super) fn wait(path: &Path) -> io::Result<Self> {
        let file = open(path, OFlags::CREATE)?;
        flock::wait(Sharing::Exclusive, &file)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Opens the file at `path`, creating it with mode 0600, and takes its lock. Returns `None`
    /// while another process or task has the lock, or if the file lost its name meanwhile.
    pub(super) fn try_named(path: &Path) -> io::Result<Option<Self>> {
        Self::try_locked(open(path, OFlags::CREATE)?, path)
    }

    /// Like [`Self::try_named`], for a file that must exist. Returns `None` if it does not.
    pub(super) fn try_existing(path: &Path) -> io::Result<Option<Self>> {
        match open(path, OFlags::empty()) {
            Ok(file) => Self::try_locked(file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn try_locked(file: File, path: &Path) -> io::Result<Option<Self>> {
        if !flock::try_take(Sharing::Exclusive, &file)? {
            return Ok(None);
        }
        // A lock on a file without a name excludes no process.
        Ok(flock::is_named(&file, path)?.then(|| Self { file, path: path.to_owned() }))
    }
}
