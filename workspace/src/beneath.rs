//! The root of a project, and every look-up below it. Owns how a path becomes a descriptor: by
//! openat2(2), which follows no symbolic link, leaves neither the root nor its mount, and so may never
//! reach a file that is not in the directory that the user named.

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags, open, openat2, statx,
    },
    io::Errno,
};
use std::path::{Path, PathBuf};

/// Flags of every look-up.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_SYMLINKS);

/// Prefix of the names of directories in a root in which an apply prepares files, and keeps old ones.
pub(crate) const STAGING_PREFIX: &str = ".sandboxvm-apply-";

/// An open root directory.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens a directory. Symbolic links in `path` itself are followed, once.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let path = path.canonicalize()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { directory: open(&path, flags, Mode::empty())?, path })
    }

    /// Returns the absolute path, for messages and records.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what is at a path below the root.
    pub(crate) fn open_at(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        open_below(self.directory.as_fd(), path, flags, mode)
    }

    /// Opens a directory below the root, or the root, to list it or to change names in it.
    pub(crate) fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_at(if path.is_empty() { b"." } else { path }, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    /// Opens a regular file below the root for reading, without waiting for a pipe or a device.
    pub(crate) fn file(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open_at(path, flags, Mode::empty())?;
        let about = look_at(file.as_fd(), b"")?;
        if about.kind == FileType::RegularFile { Ok(file) } else { Err(Errno::INVAL) }
    }
}

/// Splits a path into its directory, empty for the root, and its last name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Returns the directories above a path, without the root.
pub(crate) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(split(path).0), |path| Some(split(path).0)).take_while(|path| !path.is_empty())
}

fn open_below(at: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    loop {
        match openat2(at, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode, RESOLVE) {
            // A rename or mount elsewhere disturbed the look-up.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// What statx(2) says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) kind: FileType,
    /// The low twelve bits of the mode.
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) links: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) modified: (i64, u32),
    pub(crate) changed: (i64, u32),
    /// Another file system is mounted here.
    pub(crate) is_mount: bool,
}

impl About {
    fn of(found: &Statx) -> Self {
        let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Self {
            kind: FileType::from_raw_mode(found.stx_mode.into()),
            mode: u32::from(found.stx_mode) & 0o7777,
            size: found.stx_size,
            device: u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor),
            inode: found.stx_ino,
            links: found.stx_nlink,
            owner: (found.stx_uid, found.stx_gid),
            modified: time(found.stx_mtime),
            changed: time(found.stx_ctime),
            is_mount: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        }
    }
}

/// Describes the file `name` of a directory, or the open file itself if `name` is empty.
pub(crate) fn look_at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<About, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    statx(directory, name, flags, StatxFlags::BASIC_STATS).map(|found| About::of(&found))
}

/// Opens a file outside of every project, such as one of the cache.
pub(crate) fn open_plain(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::from_raw_mode(0o600))
}
