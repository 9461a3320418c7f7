//! Describes one file, with the names of its owners.

use super::failure::{Trouble, failure, refused};
use crate::process::user::Names;
use rustix::fs::{AtFlags, FileType, Stat, readlinkat, statat};
use sandboxvm_protocol::agent::files::{FileEntry, FileErrorKind, FileKind, FilePath, FileTime};
use std::os::fd::BorrowedFd;

/// Describes files, with the names of their owners.
#[derive(Debug)]
pub(super) struct Describer {
    users: Names,
    groups: Names,
}

impl Describer {
    pub(super) fn new() -> Self {
        Self { users: Names::of_users(), groups: Names::of_groups() }
    }

    /// Describes the file `name` in `directory`, whose path is `path`.
    pub(super) fn describe(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        follow: bool,
    ) -> Result<FileEntry, Trouble> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let about = statat(directory, name, flags).map_err(|errno| refused("look at it", path, errno))?;
        let kind = kind(&about);
        let target = (kind == FileKind::Symlink).then(|| readlinkat(directory, name, Vec::new()).ok()).flatten();
        let too_long = |_| failure(FileErrorKind::BadPath, None, "a path is longer than Linux takes".to_owned());
        Ok(FileEntry {
            path: FilePath::try_from(path.to_vec()).map_err(too_long)?,
            kind,
            size: u64::try_from(about.st_size).unwrap_or(0),
            mode: about.st_mode & 0o7777,
            uid: about.st_uid,
            gid: about.st_gid,
            owner: self.users.get(about.st_uid),
            group: self.groups.get(about.st_gid),
            modified: FileTime {
                seconds: about.st_mtime,
                nanoseconds: u32::try_from(about.st_mtime_nsec).unwrap_or(0),
            },
            link_target: target.and_then(|target| FilePath::try_from(target.into_bytes()).ok()),
        })
    }
}

/// Returns the kind of a file.
pub(super) fn kind(about: &Stat) -> FileKind {
    match FileType::from_raw_mode(about.st_mode) {
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharacterDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        _ => FileKind::File,
    }
}
