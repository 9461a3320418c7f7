//! How much a volume may contain, and every change that counts: names that appear and disappear, and sizes of
//! files. No change of a volume may bypass it.
//!
//! What counts is the size of a file, in whole pages, and a page for each name. It is at least what a file takes
//! on the disk, also if it is sparse, and does not depend on the file system of the host.

use super::{
    charge::{PAGE, charge, pages},
    count::count,
    nameless::{Nameless, Reaped},
    usage::{Boot, Held, Recorded, Usage, UsageFile},
};
use crate::root::{self, Identity, examine, examine_at, kind};
use rustix::{
    fs::{FlockOperation, OFlags, RenameFlags, Statx, flock, ftruncate, renameat_with},
    io::Errno,
};
use std::os::fd::{AsFd, OwnedFd};

fn size_of(stat: &Statx) -> u64 {
    stat.stx_size
}

/// Maximum contents of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub bytes: u64,
    /// Names of files, directories and links.
    pub names: u64,
}

/// The account of a volume.
#[derive(Debug)]
pub(crate) struct Quota {
    file: UsageFile,
    nameless: Nameless,
    files: OwnedFd,
    limits: Limits,
}

/// The right to change the volume, with its contents now.
struct Change<'q> {
    quota: &'q Quota,
    held: Held<'q>,
    usage: Usage,
}

impl Quota {
    /// `volume` is the directory of the volume, and `files` that of its files.
    pub(super) fn open(volume: impl AsFd, files: OwnedFd, limits: Limits, boot: Boot) -> Result<Self, Errno> {
        let quota = Self { file: UsageFile::open(&volume, boot)?, nameless: Nameless::open(&volume)?, files, limits };
        quota.begin()?.reap_all()?;
        Ok(quota)
    }

    fn begin(&self) -> Result<Change<'_>, Errno> {
        let held = self.file.lock()?;
        let usage = match held.read()? {
            Recorded::Exact(usage) => usage,
            Recorded::Unknown => {
                let usage = self.count().unwrap_or(Usage::UNCOUNTED);
                held.write(usage, false)?;
                usage
            }
        };
        Ok(Change { quota: self, held, usage })
    }

    /// Counts all files. A tree that cannot be counted is full.
    fn count(&self) -> Result<Usage, Errno> {
        self.nameless.remove_unfinished()?;
        let named = count(root::open_below(&self.files, b".")?)?;
        let nameless = count(root::open_below(self.nameless.place(0).0, b".")?)?;
        Ok(Usage {
            bytes: named.bytes.saturating_add(nameless.bytes),
            names: named.names.saturating_add(nameless.names),
        })
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Returns what the volume contains.
    pub(crate) fn usage(&self) -> Result<Usage, Errno> {
        Ok(self.begin()?.usage)
    }

    /// Makes a change that adds a name.
    pub(crate) fn adding<T>(&self, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let mut begun = self.begin()?;
        begun.announce(PAGE, 1)?;
        let made = change();
        if made.is_ok() {
            begun.usage.add(PAGE, 1);
        }
        begun.end()?;
        made
    }

    /// Makes a change of the content of an open file, which has at most the size `planned` of its size now
    /// afterwards.
    pub(crate) fn resizing<T>(
        &self,
        file: impl AsFd,
        planned: impl FnOnce(u64) -> u64,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut begun = self.begin()?;
        let before = size_of(&examine(&file)?);
        let more = pages(planned(before)).saturating_sub(pages(before));
        begun.announce(more, 0)?;
        let made = change();
        let after = size_of(&examine(&file)?);
        begun.usage.subtract(pages(before), 0);
        begun.usage.add(pages(after), 0);
        begun.end()?;
        made
    }

    /// Removes a name.
    pub(crate) fn removing<T>(
        &self,
        parent: impl AsFd,
        name: &[u8],
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut begun = self.begin()?;
        let stat = examine_at(&parent, name)?;
        begun.losing(&parent, name, &stat, change)
    }

    /// Renames `from`, a directory and a name in it, to `to`.
    pub(crate) fn renaming<T>(
        &self,
        from: (impl AsFd, &[u8]),
        to: (impl AsFd, &[u8]),
        exchanges: bool,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut begun = self.begin()?;
        let old = examine_at(&from.0, from.1)?;
        match examine_at(&to.0, to.1) {
            // Two names of one file both stay.
            Ok(new) if !exchanges && Identity::from(&new) != Identity::from(&old) => {
                begun.losing(&to.0, to.1, &new, change)
            }
            Ok(_) | Err(Errno::NOENT) => change(),
            Err(errno) => Err(errno),
        }
    }

    /// Notes that this process uses an open file of the volume, until it closes it.
    pub(crate) fn uses(&self, file: impl AsFd) -> Result<(), Errno> {
        let _begun = self.begin()?;
        // Its content is gone, and what is written to it now would count for nothing.
        if examine(&file)?.stx_nlink == 0 {
            return Err(Errno::STALE);
        }
        flock(file, FlockOperation::NonBlockingLockShared)
    }

    /// Removes a file that this process has just closed, if it has no name any more.
    pub(crate) fn closed(&self, inode: u64) -> Result<(), Errno> {
        if self.nameless.has(inode) { self.begin()?.reap(inode) } else { Ok(()) }
    }

    /// Makes a file without a name.
    pub(crate) fn create_nameless(&self) -> Result<OwnedFd, Errno> {
        self.adding(|| self.nameless.create())
    }

    /// Gives a file that was made here, and is open, a name, which another file may have.
    pub(crate) fn name(&self, file: &OwnedFd, parent: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        let inode = examine(file)?.stx_ino;
        let (directory, from) = self.nameless.place(inode);
        let mut begun = self.begin()?;
        let rename = || renameat_with(directory, &*from, &parent, name, RenameFlags::empty());
        match examine_at(&parent, name) {
            Ok(stat) if kind(&stat) == libc::S_IFDIR => Err(Errno::ISDIR),
            Ok(stat) => begun.losing(&parent, name, &stat, rename),
            Err(Errno::NOENT) => rename(),
            Err(errno) => Err(errno),
        }
    }
}

impl Change<'_> {
    /// Checks that this much more may be there, and writes it down.
    fn announce(&mut self, bytes: u64, names: u64) -> Result<(), Errno> {
        if !self.has_room(bytes, names) {
            // What is not used any more makes room.
            self.reap_all()?;
            if self.usage == Usage::UNCOUNTED {
                // Enough may have been removed since.
                self.usage = self.quota.count().unwrap_or(Usage::UNCOUNTED);
                self.held.write(self.usage, false)?;
            }
            if !self.has_room(bytes, names) {
                return Err(Errno::NOSPC);
            }
        }
        let Usage { bytes: used, names: has } = self.usage;
        self.held.write(Usage { bytes: used.saturating_add(bytes), names: has.saturating_add(names) }, true)
    }

    fn has_room(&self, bytes: u64, names: u64) -> bool {
        let Limits { bytes: max_bytes, names: max_names } = self.quota.limits;
        // What does not grow is allowed in a volume that is over its limits.
        (bytes == 0 || self.usage.bytes.saturating_add(bytes) <= max_bytes)
            && (names == 0 || self.usage.names.saturating_add(names) <= max_names)
    }

    fn end(self) -> Result<(), Errno> {
        self.held.write(self.usage, false)
    }

    /// Makes a change by which what `stat` describes loses the name `name`.
    fn losing<T>(
        &mut self,
        parent: impl AsFd,
        name: &[u8],
        stat: &Statx,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.held.write(self.usage, true)?;
        let is_last = kind(stat) == libc::S_IFREG && stat.stx_nlink <= 1;
        if is_last {
            match self.quota.nameless.keep(&parent, name, stat.stx_ino) {
                // The host's disk is full, and this change may be what makes room: a file that no process uses goes
                // without another name.
                Err(Errno::NOSPC | Errno::DQUOT) => return self.losing_unused(&parent, name, stat, change),
                kept => kept?,
            }
        }
        let made = change();
        if is_last {
            // Also where the change failed: the file has its name then, and loses the other one.
            self.reap_held(stat.stx_ino)?;
        } else if made.is_ok() {
            self.lose(0);
        }
        self.held.write(self.usage, false)?;
        made
    }

    /// As [`Self::losing`], for the last name of a file that could not get another one.
    fn losing_unused<T>(
        &mut self,
        parent: impl AsFd,
        name: &[u8],
        stat: &Statx,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let file = root::open(&parent, name, OFlags::RDWR, Identity::from(stat))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(Errno::NOSPC),
            locked => locked?,
        }
        let made = change();
        if made.is_ok() {
            // A process that only knows where the file was keeps its inode, and not its content.
            ftruncate(&file, 0)?;
            self.lose(stat.stx_size);
        }
        self.held.write(self.usage, false)?;
        made
    }

    fn lose(&mut self, size: u64) {
        self.usage.subtract(charge(size), 1);
    }

    fn reap(mut self, inode: u64) -> Result<(), Errno> {
        self.held.write(self.usage, true)?;
        self.reap_held(inode)?;
        self.end()
    }

    fn reap_held(&mut self, inode: u64) -> Result<(), Errno> {
        if let Reaped::Removed { size } = self.quota.nameless.reap(inode)? {
            self.lose(size);
        }
        Ok(())
    }

    fn reap_all(&mut self) -> Result<(), Errno> {
        let all = self.quota.nameless.all()?;
        if all.is_empty() {
            return Ok(());
        }
        self.held.write(self.usage, true)?;
        for inode in all {
            self.reap_held(inode)?;
        }
        self.held.write(self.usage, false)
    }
}
