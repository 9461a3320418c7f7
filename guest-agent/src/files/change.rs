//! Changes to the names, owners and modes of files, and their removal.

use super::failure::{Trouble, failure, refused};
use super::inspect::describe;
use crate::process::user::{User, UserError};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdir, openat, rename as rename_file, stat,
    statat, unlinkat,
};
use rustix::io::Errno;
use sandboxvm_protocol::agent::CText;
use sandboxvm_protocol::agent::files::{FileErrorKind, FileReply, FileTotals};
use std::os::fd::BorrowedFd;

const MAX_DEPTH: usize = 256;
/// How often a directory is emptied if other processes add files to it.
const PASSES: usize = 64;

pub(super) fn make_directory(path: &[u8], mode: Option<u32>, must_be_new: bool) -> Result<FileReply, Trouble> {
    let made = make_directories(path, mode.unwrap_or(0o755) & 0o7777)?;
    if must_be_new && !made {
        return Err(refused("make the directory", path, Errno::EXIST));
    }
    describe(path, true).map(FileReply::Entry)
}

/// Creates a directory and the missing ones above it. Returns false if it existed.
pub(super) fn make_directories(path: &[u8], mode: u32) -> Result<bool, Trouble> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    match mkdir(if path.is_empty() { b"/" } else { path }, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => {
            let above = path.iter().rposition(|byte| *byte == b'/').map(|at| &path[..at]);
            let above = above.filter(|above| !above.is_empty());
            make_directories(above.ok_or_else(|| refused("make the directory", path, Errno::NOENT))?, 0o755)?;
            mkdir(path, Mode::from_raw_mode(mode)).map_err(|errno| refused("make the directory", path, errno))?;
            Ok(true)
        }
        Err(Errno::EXIST) => match stat(if path.is_empty() { b"/" } else { path }) {
            Ok(about) if FileType::from_raw_mode(about.st_mode) == FileType::Directory => Ok(false),
            Ok(_) => Err(refused("make the directory", path, Errno::NOTDIR)),
            Err(errno) => Err(refused("make the directory", path, errno)),
        },
        Err(errno) => Err(refused("make the directory", path, errno)),
    }
}

pub(super) fn rename(from: &[u8], to: &[u8]) -> Result<FileReply, Trouble> {
    rename_file(from, to).map_err(|errno| match errno {
        Errno::XDEV => failure(
            FileErrorKind::Other,
            Some(from),
            "cannot move it: the new place is on another file system, or it is a directory of the image; copy it instead"
                .to_owned(),
        ),
        errno => refused("move it", from, errno),
    })?;
    describe(to, false).map(FileReply::Entry)
}

pub(super) fn remove(path: &[u8], recursive: bool) -> Result<FileReply, Trouble> {
    let mut totals = FileTotals::default();
    remove_at(CWD, path, path, recursive, &mut totals, 0)?;
    Ok(FileReply::Done(totals))
}

fn remove_at(
    directory: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    recursive: bool,
    totals: &mut FileTotals,
    depth: usize,
) -> Result<(), Trouble> {
    let fail = |errno| refused("remove it", path, errno);
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => {
            totals.entries += 1;
            return Ok(());
        }
        // For a directory, Linux returns EISDIR, and POSIX allows EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(fail(errno)),
    }
    for _ in 0..PASSES {
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                totals.entries += 1;
                return Ok(());
            }
            Err(Errno::NOTEMPTY) if recursive && depth < MAX_DEPTH => {}
            // It is a file that may not be removed.
            Err(Errno::NOTDIR) => return Err(fail(Errno::PERM)),
            Err(errno) => return Err(fail(errno)),
        }
        for_each_entry(directory, name, path, "remove it", |directory, name, path| {
            remove_at(directory, name, path, true, totals, depth + 1)
        })?;
    }
    Err(fail(Errno::NOTEMPTY))
}

pub(super) fn set_mode(path: &[u8], mode: u32, recursive: bool) -> Result<FileReply, Trouble> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    let set = |directory: BorrowedFd<'_>, name: &[u8], is_link: bool| {
        if is_link { Ok(()) } else { chmodat(directory, name, mode, AtFlags::empty()) }
    };
    for_all(CWD, path, path, recursive, 0, "change its mode", &set)?;
    describe(path, true).map(FileReply::Entry)
}

pub(super) fn set_owner(path: &[u8], owner: &CText, recursive: bool) -> Result<FileReply, Trouble> {
    let user = User::find(owner.as_bytes())
        .map_err(|error: UserError| failure(FileErrorKind::NoSuchUser, None, error.to_string()))?;
    let Some(ids) = user.ids else { return Err(failure(FileErrorKind::NoSuchUser, None, "no such user".to_owned())) };
    let gid = owner.as_bytes().contains(&b':').then(|| Gid::from_raw(ids.gid));
    let set = |directory: BorrowedFd<'_>, name: &[u8], _| {
        chownat(directory, name, Some(Uid::from_raw(ids.uid)), gid, AtFlags::SYMLINK_NOFOLLOW)
    };
    for_all(CWD, path, path, recursive, 0, "change its owner", &set)?;
    describe(path, false).map(FileReply::Entry)
}

/// Calls `set` for a file and, if `recursive`, for all files below it first. Otherwise its new mode
/// could prevent access to them.
fn for_all(
    directory: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    recursive: bool,
    depth: usize,
    step: &str,
    set: &impl Fn(BorrowedFd<'_>, &[u8], bool) -> Result<(), Errno>,
) -> Result<(), Trouble> {
    let fail = |errno| refused(step, path, errno);
    let about = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
    let kind = FileType::from_raw_mode(about.st_mode);
    if recursive && kind == FileType::Directory {
        if depth == MAX_DEPTH {
            return Err(fail(Errno::NAMETOOLONG));
        }
        for_each_entry(directory, name, path, step, |directory, name, path| {
            for_all(directory, name, path, true, depth + 1, step, set)
        })?;
    }
    // If the request names a link, `set` changes its target. Links below a directory are not
    // followed.
    set(directory, name, depth > 0 && kind == FileType::Symlink).map_err(fail)
}

/// Calls `visit` for every entry of the directory `name`, with that directory, the entry's name and
/// its path. Skips an entry that is removed meanwhile. `step` is the operation in error messages.
fn for_each_entry(
    directory: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    step: &str,
    mut visit: impl FnMut(BorrowedFd<'_>, &[u8], &[u8]) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let fail = |errno| refused(step, path, errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut entries = openat(directory, name, flags, Mode::empty()).and_then(Dir::new).map_err(fail)?;
    while let Some(entry) = entries.read() {
        let entry = entry.map_err(fail)?;
        let entry = entry.file_name().to_bytes();
        if matches!(entry, b"." | b"..") {
            continue;
        }
        let below = [path, b"/", entry].concat();
        match visit(entries.fd().map_err(fail)?, entry, &below) {
            Err(Trouble::Failed(failure)) if failure.kind == FileErrorKind::NotFound => {}
            visited => visited?,
        }
    }
    Ok(())
}
