//! Files of a volume that have no name in it: removed while a process had them open, or being written by the
//! content API. They take space, so they stay in a separate directory until no process uses them. A process
//! that has a file of the volume open holds its lock (flock(2)), shared. Everything here happens under the lock of
//! the volume.

use rustix::{
    fs::{
        AtFlags, FlockOperation, Mode, OFlags, RawDir, ResolveFlags, flock, fstat, ftruncate, linkat, openat2, unlinkat,
    },
    io::Errno,
};
use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

pub(super) const DIRECTORY: &str = "nameless";
/// Name of a file that is being made.
const UNFINISHED: &str = "new";
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaped {
    /// It is gone, and had this size.
    Removed { size: u64 },
    /// A process uses it, or it has a name again.
    Kept,
}

/// The directory.
#[derive(Debug)]
pub(super) struct Nameless(OwnedFd);

impl Nameless {
    pub(super) fn open(volume: impl AsFd) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(openat2(volume, DIRECTORY, flags, Mode::empty(), RESOLVE)?))
    }

    /// Gives a file that is about to lose its last name another one here.
    pub(super) fn keep(&self, parent: impl AsFd, name: &[u8], inode: u64) -> Result<(), Errno> {
        let kept = inode.to_string();
        match linkat(&parent, name, &self.0, &*kept, AtFlags::empty()) {
            // Of an attempt that was interrupted.
            Err(Errno::EXIST) => {
                unlinkat(&self.0, &*kept, AtFlags::empty())?;
                linkat(&parent, name, &self.0, &*kept, AtFlags::empty())
            }
            kept => kept,
        }
    }

    /// Makes a new file, which stays while it is open.
    pub(super) fn create(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat2(&self.0, UNFINISHED, flags, mode, RESOLVE)?;
        let made = fstat(&file).and_then(|stat| {
            flock(&file, FlockOperation::NonBlockingLockShared)?;
            linkat(&self.0, UNFINISHED, &self.0, stat.st_ino.to_string(), AtFlags::empty())
        });
        unlinkat(&self.0, UNFINISHED, AtFlags::empty())?;
        made.map(|()| file)
    }

    /// Removes a file that a process was making when it was killed. Not while another one may be making one.
    pub(super) fn remove_unfinished(&self) -> Result<(), Errno> {
        match unlinkat(&self.0, UNFINISHED, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        }
    }

    /// Returns the directory and the name of a file made here.
    pub(super) fn place(&self, inode: u64) -> (&OwnedFd, String) {
        (&self.0, inode.to_string())
    }

    /// Returns true if there is a file with this number.
    pub(super) fn has(&self, inode: u64) -> bool {
        self.find(&inode.to_string()).is_ok()
    }

    fn find(&self, name: &str) -> Result<OwnedFd, Errno> {
        openat2(&self.0, name, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
    }

    /// Removes a file unless a process uses it.
    pub(super) fn reap(&self, inode: u64) -> Result<Reaped, Errno> {
        let name = inode.to_string();
        let file = match self.find(&name) {
            Err(Errno::NOENT) => return Ok(Reaped::Kept),
            file => file?,
        };
        let stat = fstat(&file)?;
        if stat.st_nlink > 1 {
            // The change that it was kept for did not happen.
            unlinkat(&self.0, &*name, AtFlags::empty())?;
            return Ok(Reaped::Kept);
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(Reaped::Kept),
            locked => locked?,
        }
        // A process that only knows where the file was keeps its inode, and not its content.
        ftruncate(&file, 0)?;
        unlinkat(&self.0, &*name, AtFlags::empty())?;
        Ok(Reaped::Removed { size: u64::try_from(stat.st_size).unwrap_or(0) })
    }

    /// Returns all files.
    pub(super) fn all(&self) -> Result<Vec<u64>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat2(&self.0, ".", flags, Mode::empty(), RESOLVE)?;
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&directory, &mut buffer);
        let mut all = Vec::new();
        while let Some(entry) = entries.next() {
            if let Ok(Ok(inode)) = entry?.file_name().to_str().map(str::parse) {
                all.push(inode);
            }
        }
        Ok(all)
    }
}
