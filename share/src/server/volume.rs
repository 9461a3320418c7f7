//! What a volume does in another way than a share: every change counts, and owner and permissions of a file are
//! what guests and clients have set. Without a volume, these functions do what a share does.

use super::{Owner, Server};
use crate::{
    protocol::{Attributes, Reply},
    root::{PERMISSIONS, examine, kind},
    volume::{ownership::Ownership, quota::Quota},
};
use rustix::{
    fs::{Mode, OFlags, StatVfs, Statx, fcntl_getfl, fstatvfs},
    io::Errno,
};
use std::os::fd::{AsFd, OwnedFd};

/// What statfs(2) counts a volume in, in bytes.
const BLOCK: u64 = 4096;

impl Server {
    fn quota(&self) -> Option<&Quota> {
        self.volume.as_ref().map(|volume| &volume.quota)
    }

    /// Makes a change that adds a name.
    pub(super) fn adding<T>(&self, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        match self.quota() {
            Some(quota) => quota.adding(change),
            None => change(),
        }
    }

    /// Makes a change of the size of an open file. It has at most the size `planned` of its size now afterwards.
    pub(super) fn resizing<T>(
        &self,
        file: impl AsFd,
        planned: impl FnOnce(u64) -> u64,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self.quota() {
            Some(quota) => quota.resizing(file, planned, change),
            None => change(),
        }
    }

    /// Writes `length` bytes at `offset`, or at the end of a file that is open for appending.
    pub(super) fn writing<T>(
        &self,
        file: impl AsFd,
        offset: u64,
        length: usize,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(quota) = self.quota() else { return change() };
        let appends = fcntl_getfl(&file)?.contains(OFlags::APPEND);
        let planned = |size: u64| if appends { size } else { offset }.saturating_add(length as u64).max(size);
        quota.resizing(file, planned, change)
    }

    /// Removes a name.
    pub(super) fn removing<T>(
        &self,
        parent: impl AsFd,
        name: &[u8],
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self.quota() {
            Some(quota) => quota.removing(parent, name, change),
            None => change(),
        }
    }

    /// Renames a name.
    pub(super) fn renaming<T>(
        &self,
        from: (impl AsFd, &[u8]),
        to: (impl AsFd, &[u8]),
        exchanges: bool,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self.quota() {
            Some(quota) => quota.renaming(from, to, exchanges, change),
            None => change(),
        }
    }

    /// Notes that a file that was opened is in use.
    pub(super) fn uses(&self, file: impl AsFd) -> Result<(), Errno> {
        self.quota().map_or(Ok(()), |quota| quota.uses(file))
    }

    /// Notes that a file with this inode number was closed.
    pub(super) fn closed(&self, inode: u64) {
        if let Some(quota) = self.quota() {
            // It counts until the next process of the volume starts.
            let _ = quota.closed(inode);
        }
    }

    /// Returns true if the share is a volume: all of its files are readable and writable on the host.
    pub(super) fn is_volume(&self) -> bool {
        self.volume.is_some()
    }

    /// Returns the mode on the host of a new file with this mode in the guest.
    pub(super) fn host_mode(&self, mode: u32, is_directory: bool) -> Mode {
        match (self.is_volume(), is_directory) {
            (true, true) => Mode::RWXU,
            (true, false) => Mode::RUSR | Mode::WUSR,
            (false, _) => Mode::from_raw_mode(mode & PERMISSIONS),
        }
    }

    /// Gives a new file of a volume to the process that made it.
    pub(super) fn give(&self, file: impl AsFd, to: Owner, mode: u32) -> Result<(), Errno> {
        if self.is_volume() { Ownership { uid: to.uid, gid: to.gid, mode }.set(file) } else { Ok(()) }
    }

    /// Returns attributes as the guest sees them. `open` opens the file.
    pub(super) fn shown(&self, stat: &Statx, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Attributes {
        let seen = self.seen(stat);
        if !self.is_volume() {
            return seen;
        }
        let own = match kind(stat) {
            // Whatever fails here fails for the guest when it opens the file.
            libc::S_IFREG | libc::S_IFDIR => open().map(|file| Ownership::of(file, u32::from(stat.stx_mode))).ok(),
            _ => None,
        };
        let Ownership { uid, gid, mode } =
            own.unwrap_or(Ownership { uid: 0, gid: 0, mode: u32::from(stat.stx_mode) & 0o777 });
        Attributes { uid, gid, mode: u32::from(stat.stx_mode) & libc::S_IFMT | mode, ..seen }
    }

    /// Sets owner and permissions of a file of a volume. Of a link, they are always the same.
    pub(super) fn set_ownership(
        &self,
        node: u64,
        (uid, gid, mode): (Option<u32>, Option<u32>, Option<u32>),
    ) -> Result<(), Errno> {
        if uid.is_none() && gid.is_none() && mode.is_none() {
            return Ok(());
        }
        let stat = examine(self.nodes().file(node)?)?;
        if kind(&stat) == libc::S_IFLNK {
            let is_root = |id: Option<u32>| id.is_none_or(|id| id == 0);
            return if is_root(uid) && is_root(gid) && mode.is_none() { Ok(()) } else { Err(Errno::PERM) };
        }
        let file = self.reopen(node, OFlags::RDONLY)?;
        let own = Ownership::of(&file, u32::from(stat.stx_mode));
        Ownership { uid: uid.unwrap_or(own.uid), gid: gid.unwrap_or(own.gid), mode: mode.unwrap_or(own.mode) }.set(file)
    }

    /// Checks access(2) to a file of a volume, whose permissions on the host mean nothing: as root of the guest, every
    /// user may read and write, and may execute what any user may.
    pub(super) fn may_access_in_volume(&self, node: u64, mask: u32) -> Result<(), Errno> {
        let stat = examine(self.nodes().file(node)?)?;
        if mask & libc::X_OK.unsigned_abs() == 0 || kind(&stat) != libc::S_IFREG {
            return Ok(());
        }
        let mode = Ownership::of(self.reopen(node, OFlags::RDONLY)?, u32::from(stat.stx_mode)).mode;
        if mode & 0o111 == 0 { Err(Errno::ACCESS) } else { Ok(()) }
    }

    /// Returns how much room there is.
    pub(super) fn room(&self) -> Result<Reply, Errno> {
        let host = fstatvfs(self.root.file())?;
        let Some(quota) = self.quota() else { return Ok(Reply::statfs(&host)) };
        let (usage, limits) = (quota.usage()?, quota.limits());
        let free = limits.bytes.saturating_sub(usage.bytes) / BLOCK;
        let host_free = host.f_bavail.saturating_mul(host.f_frsize) / BLOCK;
        let names = limits.names.saturating_sub(usage.names);
        Ok(Reply::statfs(&StatVfs {
            f_bsize: BLOCK,
            f_frsize: BLOCK,
            f_blocks: limits.bytes / BLOCK,
            f_bfree: free.min(host_free),
            f_bavail: free.min(host_free),
            f_files: limits.names,
            f_ffree: names.min(host.f_ffree),
            ..host
        }))
    }
}
