//! The content of files. A written file is moved to its place in one step, by a rename, after the
//! host has confirmed its end.

use super::change::make_directories;
use super::channel::{Channel, DataWriter, FillError};
use super::details;
use super::failure::{Trouble, failure, refused};
use super::inspect::describe;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, lstat, open, openat, stat};
use rustix::io::Errno;
use rustix::process::geteuid;
use sandboxvm_archive::Temporary;
use sandboxvm_protocol::agent::details::FileMetadata;
use sandboxvm_protocol::agent::files::{FileEntry, FileErrorKind, FileReply, FileTotals};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

const CHUNK: usize = 64 * 1024;

pub(super) fn read(channel: &mut Channel, path: &[u8]) -> Result<FileReply, Trouble> {
    let fail = |errno| refused("read it", path, errno);
    // Opening the file must not block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open(path, flags, Mode::empty()).map_err(fail)?;
    let size = || Ok::<_, Errno>(u64::try_from(fstat(&file)?.st_size).unwrap_or(0));
    match FileType::from_raw_mode(fstat(&file).map_err(fail)?.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(fail(Errno::ISDIR)),
        _ => {
            let message = "cannot read it: it is no regular file".to_owned();
            return Err(failure(FileErrorKind::NotAFile, Some(path), message));
        }
    }
    // Describes the opened file, as another one may have its name by now.
    let begun = FileEntry { size: size().map_err(fail)?, ..describe(path, true)? };
    // Files of /proc have content, but their size is 0.
    let has_size = begun.size > 0;
    channel.reply(&FileReply::Begun(Some(begun)))?;
    let mut writer = DataWriter::new(channel);
    let mut bytes = 0;
    loop {
        match writer.fill(|buffer| rustix::io::read(&file, buffer)) {
            Ok(0) => break,
            Ok(count) => bytes += count as u64,
            Err(FillError::Read(Errno::INTR)) => {}
            Err(FillError::Read(errno)) => return Err(fail(errno)),
            Err(FillError::Gone) => return Err(Trouble::Gone),
        }
    }
    if has_size && size().map_err(fail)? < bytes {
        // The bytes come from two moments, and together they were never the content of the file.
        let message = "it became shorter while it was read".to_owned();
        return Err(failure(FileErrorKind::Other, Some(path), message));
    }
    Ok(FileReply::Done(FileTotals { entries: 1, bytes, ..FileTotals::default() }))
}

/// The place of a new file, with symbolic links resolved, and its attributes.
struct Target {
    directory: Vec<u8>,
    name: Vec<u8>,
    mode: u32,
    owner: Option<(u32, u32)>,
    /// Whether a file exists there.
    exists: bool,
}

impl Target {
    fn find(path: &[u8], mode: Option<u32>, parents: bool) -> Result<Self, Trouble> {
        let fail = |errno| refused("write it", path, errno);
        let (path, old) = match stat(path) {
            Ok(about) => match FileType::from_raw_mode(about.st_mode) {
                FileType::RegularFile => {
                    let real = std::fs::canonicalize(Path::new(OsStr::from_bytes(path)));
                    let real = real.map_err(|error| fail(Errno::from_io_error(&error).unwrap_or(Errno::NOENT)))?;
                    (real.into_os_string().into_vec(), Some(about))
                }
                FileType::Directory => return Err(fail(Errno::ISDIR)),
                _ => {
                    let message = "cannot write it: something that is no regular file is there".to_owned();
                    return Err(failure(FileErrorKind::NotAFile, Some(path), message));
                }
            },
            Err(Errno::NOENT) if lstat(path).is_ok() => {
                let message = "cannot write it: it is a symbolic link to nothing".to_owned();
                return Err(failure(FileErrorKind::NotFound, Some(path), message));
            }
            Err(Errno::NOENT) => (path.to_vec(), None),
            Err(errno) => return Err(fail(errno)),
        };
        let at = path.iter().rposition(|byte| *byte == b'/').ok_or_else(|| fail(Errno::NOENT))?;
        let (directory, name) = (&path[..at], &path[at + 1..]);
        if name.is_empty() || matches!(name, b"." | b"..") {
            return Err(fail(Errno::ISDIR));
        }
        let directory = if directory.is_empty() { b"/" } else { directory };
        if parents && old.is_none() {
            make_directories(directory, 0o755)?;
        }
        Ok(Self {
            directory: directory.to_vec(),
            name: name.to_vec(),
            exists: old.is_some(),
            mode: old.as_ref().map_or(mode.unwrap_or(0o644), |old| old.st_mode) & 0o7777,
            owner: old.map(|old| (old.st_uid, old.st_gid)).filter(|_| geteuid().is_root()),
        })
    }
}

pub(super) fn write(
    channel: &mut Channel,
    path: &[u8],
    mode: Option<u32>,
    parents: bool,
) -> Result<FileReply, Trouble> {
    put(channel, path, mode, parents, &FileMetadata::default())?;
    describe(path, true).map(FileReply::Entry)
}

pub(super) fn write_with_metadata(
    channel: &mut Channel,
    path: &[u8],
    mode: Option<u32>,
    parents: bool,
    metadata: &FileMetadata,
) -> Result<FileReply, Trouble> {
    put(channel, path, mode, parents, metadata)?;
    details::describe(path)
}

/// Receives a file from the host and moves it to its place.
fn put(
    channel: &mut Channel,
    path: &[u8],
    mode: Option<u32>,
    parents: bool,
    metadata: &FileMetadata,
) -> Result<(), Trouble> {
    let fail = |errno| refused("write it", path, errno);
    let target = Target::find(path, mode, parents)?;
    let directory = open(&target.directory[..], OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let directory = directory.map_err(fail)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let make = |name: &str| openat(&directory, name, flags, Mode::RUSR | Mode::WUSR);
    let (temporary, file) = Temporary::make(directory.as_fd(), target.exists, make).map_err(fail)?;
    channel.reply(&FileReply::Begun(None))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = channel.read(&mut buffer).map_err(|_| Trouble::Gone)?;
        if count == 0 {
            break;
        }
        let mut bytes = &buffer[..count];
        while !bytes.is_empty() {
            match rustix::io::write(&file, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
    }
    details::set_metadata(&file, metadata, path)?;
    if let Some((uid, gid)) = target.owner {
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(fail)?;
    }
    fchmod(&file, Mode::from_raw_mode(target.mode)).map_err(fail)?;
    temporary.rename(&target.name).map_err(fail)
}
