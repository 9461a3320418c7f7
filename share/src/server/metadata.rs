//! Attributes of files.

use super::{Outcome, Server};
use crate::{
    handles::Handle,
    nodes::ROOT,
    protocol::{Reply, Times},
    root::{PERMISSIONS, examine, kind},
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, Timestamps, chmodat, fchmod, ftruncate, futimens, readlinkat, utimensat},
    io::Errno,
};
use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, PoisonError},
};

/// Set-user-ID and set-group-ID.
const PRIVILEGES: u32 = libc::S_ISUID | libc::S_ISGID;

impl Server {
    pub(super) fn attributes(&self, node: u64, handle: Option<u64>) -> Outcome {
        let shown = match handle {
            Some(handle) => match self.handles().get(handle)? {
                Handle::File(file) => self.shown(&examine(&file)?, || file.try_clone().map_err(|_| Errno::MFILE)),
                Handle::Directory(directory) => {
                    let directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
                    self.shown(&examine(&*directory)?, || directory.try_clone().map_err(|_| Errno::MFILE))
                }
            },
            None => {
                let stat = examine(self.nodes().file(node)?)?;
                self.shown(&stat, || self.reopen(node, OFlags::RDONLY))
            }
        };
        Ok(Reply::attributes(&shown))
    }

    /// All files belong to one user on the host, so another owner cannot be set.
    pub(super) fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let owner = self.settings.owner;
        if uid.is_none_or(|uid| uid == owner.uid) && gid.is_none_or(|gid| gid == owner.gid) {
            Ok(())
        } else {
            Err(Errno::PERM)
        }
    }

    pub(super) fn set_mode(&self, node: u64, handle: Option<u64>, mode: u32) -> Result<(), Errno> {
        if mode & PRIVILEGES != 0 {
            return Err(Errno::PERM);
        }
        let mode = Mode::from_raw_mode(mode & PERMISSIONS);
        match handle {
            Some(handle) => fchmod(self.handles().file(handle)?, mode),
            None => {
                match self.reopen(node, OFlags::RDONLY) {
                    // Reading may be what the mode forbids so far.
                    Err(Errno::ACCESS) => self.set_mode_unopened(node, mode),
                    file => fchmod(file?, mode),
                }
            }
        }
    }

    /// Sets the mode of a file that its owner may not open.
    fn set_mode_unopened(&self, node: u64, mode: Mode) -> Result<(), Errno> {
        let file = self.nodes().file(node)?;
        match chmod_found(&*file, mode) {
            // Before Linux 6.6, only a name can be given. At worst this is about another file of the share, which
            // has taken the name meanwhile: a link leads nowhere else in the mounts of this process.
            Err(Errno::NOSYS) if node != ROOT && kind(&examine(&file)?) != libc::S_IFLNK => {
                let place = self.place(node)?;
                chmodat(&place.parent, &*place.name, mode, AtFlags::empty())
            }
            set => set,
        }
    }

    pub(super) fn set_size(&self, node: u64, handle: Option<u64>, size: u64) -> Result<(), Errno> {
        if let Some(handle) = handle {
            let file = self.handles().file(handle)?;
            return self.resizing(&file, |_| size, || ftruncate(&file, size));
        }
        let file = self.reopen(node, OFlags::WRONLY)?;
        // Another process of a volume may remove it meanwhile.
        self.uses(&file)?;
        let resized = self.resizing(&file, |_| size, || ftruncate(&file, size));
        if self.is_volume() {
            let inode = examine(&file)?.stx_ino;
            drop(file);
            self.closed(inode);
        }
        resized
    }

    pub(super) fn set_times(&self, node: u64, handle: Option<u64>, times: Times) -> Result<(), Errno> {
        let times = Timestamps { last_access: times.accessed, last_modification: times.modified };
        if let Some(handle) = handle {
            return futimens(self.handles().file(handle)?, &times);
        }
        let file = self.nodes().file(node)?;
        if node == ROOT || kind(&examine(&file)?) == libc::S_IFDIR {
            return futimens(self.reopen(node, OFlags::RDONLY)?, &times);
        }
        // Also for links, and for files that cannot be opened. At worst this is about another file of the
        // share, which has taken the name meanwhile.
        let place = self.place(node)?;
        utimensat(&place.parent, &*place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(super) fn read_link(&self, node: u64) -> Outcome {
        let target = readlinkat(self.nodes().file(node)?, c"", Vec::new())?;
        Ok(Reply::bytes(target.as_bytes()))
    }

    pub(super) fn access(&self, node: u64, mask: u32) -> Outcome {
        if self.is_volume() {
            self.may_access_in_volume(node, mask)?;
        } else {
            let file: Arc<OwnedFd> = self.nodes().file(node)?;
            may_access(&*file, mask)?;
        }
        Ok(Reply::empty())
    }
}

/// Returns an error if this process may not access a file that was found.
fn may_access(file: impl AsFd, mask: u32) -> Result<(), Errno> {
    let mask = mask & (libc::R_OK | libc::W_OK | libc::X_OK).unsigned_abs();
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: faccessat2(2) reads the string literal only; the descriptor is open during the call.
    let result = unsafe { libc::syscall(libc::SYS_faccessat2, file.as_fd().as_raw_fd(), c"".as_ptr(), mask, flags) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Sets the mode of a file that was found. Fails with ENOSYS before Linux 6.6.
fn chmod_found(file: impl AsFd, mode: Mode) -> Result<(), Errno> {
    let (file, mode) = (file.as_fd().as_raw_fd(), mode.as_raw_mode());
    // SAFETY: fchmodat2(2) reads the string literal only; the descriptor is open during the call.
    let result = unsafe { libc::syscall(libc::SYS_fchmodat2, file, c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
