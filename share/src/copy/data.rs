//! The content and the attributes of one file.

use crate::root::PERMISSIONS;
use rustix::{
    fs::{
        Mode, SeekFrom, Statx, Timespec, Timestamps, XattrFlags, copy_file_range, fchmod, fgetxattr, flistxattr,
        fsetxattr, ftruncate, futimens, ioctl_ficlone, seek,
    },
    io::{Errno, pread, pwrite},
};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;
const BUFFER: usize = 128 << 10;
/// Maximum length in bytes of an extended attribute, and of the names of all of a file.
const MAX_XATTR: usize = 64 << 10;

/// Copies the content of a file, of which the source's data takes from `left`. Returns false if there is too little
/// left. A file that the host or a guest makes shorter meanwhile has what there was.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd, size: u64, left: &mut u64) -> Result<bool, Errno> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(true);
    }
    let mut at = 0;
    while at < size {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // The rest is a hole.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno),
        };
        let hole = seek(from, SeekFrom::Hole(data)).unwrap_or(size).min(size);
        if hole <= data {
            break;
        }
        match left.checked_sub(hole - data) {
            Some(rest) => *left = rest,
            None => return Ok(false),
        }
        range(from, to, data, hole)?;
        at = hole;
    }
    ftruncate(to, size)?;
    Ok(true)
}

fn range(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = Vec::new();
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(PIECE);
        let copied = if buffer.is_empty() {
            let (mut source, mut target) = (at, at);
            copy_file_range(from, Some(&mut source), to, Some(&mut target), most.min(PIECE))
        } else {
            piece(from, to, at, &mut buffer[..most.min(BUFFER)])
        };
        match copied {
            Ok(0) => return Ok(()),
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => {}
            // Not between these file systems, or not on this kernel.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if buffer.is_empty() => {
                buffer = vec![0; BUFFER];
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn piece(from: &OwnedFd, to: &OwnedFd, at: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let count = pread(from, &mut *buffer, at)?;
    let mut written = 0;
    while written < count {
        written += pwrite(to, &buffer[written..count], at + written as u64)?;
    }
    Ok(count)
}

/// Gives a file the permissions, times and extended attributes of its source.
pub(super) fn describe(from: impl AsFd, to: impl AsFd, stat: &Statx) -> Result<(), Errno> {
    copy_xattrs(&from, &to)?;
    futimens(&to, &times(stat))?;
    fchmod(&to, Mode::from_raw_mode(u32::from(stat.stx_mode) & PERMISSIONS))
}

pub(super) fn times(stat: &Statx) -> Timestamps {
    let time = |time: rustix::fs::StatxTimestamp| Timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec.into() };
    Timestamps { last_access: time(stat.stx_atime), last_modification: time(stat.stx_mtime) }
}

/// Copies what a guest can have set. A file system without them has none to copy, or cannot keep them.
fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let mut names = vec![0; MAX_XATTR];
    let count = match flistxattr(&from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) | Ok(0) => return Ok(()),
        count => count?,
    };
    let mut value = vec![0; MAX_XATTR];
    for name in names[..count].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        match fgetxattr(&from, name, &mut value[..]) {
            Err(Errno::NODATA) => {}
            length => fsetxattr(&to, name, &value[..length?], XattrFlags::empty())?,
        }
    }
    Ok(())
}
