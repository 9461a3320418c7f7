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

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// A file and its exclusive lock. Dropping it releases the lock.
#[derive(Debug)]
pub(super) struct FileLock {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

fn flock(file: impl AsFd, how: FlockOperation) -> io::Result<bool> {
    loop {
        match rustix::fs::flock(&file, how) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
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
        flock(&file, FlockOperation::LockExclusive)?;
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
        if !flock(&file, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(None);
        }
        // A lock on a file without a name excludes no process.
        let (held, named) = (rustix::fs::fstat(&file)?, rustix::fs::lstat(path));
        let is_named = named.is_ok_and(|named| (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino));
        Ok(is_named.then(|| Self { file, path: path.to_owned() }))
    }
}
