//! The content API of a volume: serves one request of a client, in a process that is confined like that of a
//! share. May not resolve more than one name at a time, and follows no link: guests write the same files.

mod change;
mod entry;
mod path;
mod request;

pub use request::{Answer, Failure, MAX_FRAME, MAX_PIECE, Request, SetOwner, Why};

use crate::{
    protocol::Name,
    root::{self, Root, examine, kind},
    volume::{Volume, ownership::Ownership},
};
use entry::Entry;
use path::{Found, VolumePath, failure};
use rustix::{
    fs::{CWD, Mode, OFlags, RawDir, ResolveFlags, openat2},
    io::{Errno, pread, pwrite},
};
use std::{
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::Arc,
};

/// Maximum length of a list in bytes.
const MAX_LIST: usize = 16 << 20;
/// Maximum number of levels of a list.
const MAX_LEVELS: u32 = 64;

/// Why no request was served.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Stream(#[from] io::Error),
    /// There is no request.
    #[error("the request cannot be read: {0}")]
    Request(#[from] serde_json::Error),
    /// A frame is too long.
    #[error("a frame states a length of {0} bytes")]
    Length(usize),
}

/// Serves one request. A body that does not end as it should changes nothing.
///
/// # Errors
/// When the request cannot be read, or its client does not read the answer.
pub fn serve(volume: &Volume, root: &Root, mut stream: &UnixStream) -> Result<(), ContentError> {
    let request: Request = serde_json::from_slice(&frame(stream, MAX_FRAME)?)?;
    let outcome = match request {
        Request::Read { path } => match readable(volume, root, &path) {
            Ok((file, length)) => return send(stream, &file, length),
            Err(failure) => Err(failure),
        },
        Request::Write { path, owner, force } => write(volume, root, &path, owner, force, stream).map(Some),
        request => without_body(volume, root, request),
    };
    let json = match outcome {
        Ok(Some(json)) => json,
        Ok(None) => return answer(stream, &Answer::Done),
        Err(failure) => return answer(stream, &Answer::Failed(failure)),
    };
    answer(stream, &Answer::Json { length: json.len() as u64 })?;
    Ok(stream.write_all(&json)?)
}

/// Removes everything in the directory of a volume that was removed. It need not be complete.
///
/// # Errors
/// When something cannot be removed.
pub fn clear(volume: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(CWD, volume, flags, Mode::empty(), ResolveFlags::empty())?;
    Ok(change::clear(directory)?)
}

fn frame(mut stream: &UnixStream, max: usize) -> Result<Vec<u8>, ContentError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > max {
        return Err(ContentError::Length(length));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn answer(mut stream: &UnixStream, answer: &Answer) -> Result<(), ContentError> {
    let json = serde_json::to_vec(answer)?;
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    stream.write_all(&length.to_le_bytes())?;
    Ok(stream.write_all(&json)?)
}

fn without_body(volume: &Volume, root: &Root, request: Request) -> Result<Option<Vec<u8>>, Failure> {
    let described = |path: &VolumePath| described(root, path).map(Some);
    match request {
        Request::Describe { path } => described(&VolumePath::new(&path)?),
        Request::List { path, depth } => list(root, &VolumePath::new(&path)?, depth).map(Some),
        Request::MakeDirectory { path, owner, force } => {
            let path = VolumePath::new(&path)?;
            change::make_directory(volume, root, &path, owner.check()?, force)?;
            described(&path)
        }
        Request::SetOwner { path, owner } => {
            let path = VolumePath::new(&path)?;
            change::set_owner(root, &path, &path.find(root)?, owner.check()?)?;
            described(&path)
        }
        Request::Remove { path } => change::remove(volume, root, &VolumePath::new(&path)?).map(|()| None),
        Request::Read { .. } | Request::Write { .. } => Err(failure(Why::Internal, "the request has a body")),
    }
}

fn described(root: &Root, path: &VolumePath) -> Result<Vec<u8>, Failure> {
    encoded(&Entry::of(root, path, &path.find(root)?))
}

fn encoded(value: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| failure(Why::Internal, format!("cannot encode an answer: {error}")))
}

/// Lists a directory, with `depth` levels of what is in it.
fn list(root: &Root, path: &VolumePath, depth: u32) -> Result<Vec<u8>, Failure> {
    if !(1..=MAX_LEVELS).contains(&depth) {
        return Err(failure(Why::Invalid, format!("invalid depth {depth}: must be between 1 and {MAX_LEVELS}")));
    }
    let mut json = vec![b'['];
    let mut due = vec![(path.clone(), depth)];
    while let Some((path, depth)) = due.pop() {
        let directory = path.find_directory(root)?;
        let mut names = names(&directory, MAX_LIST - json.len().min(MAX_LIST)).map_err(|errno| path.failed(errno))?;
        names.sort_unstable();
        let mut below = Vec::new();
        for name in names {
            let path = path.joined(&name);
            let Ok(name) = Name::new(&name) else { continue };
            // It may be gone by now.
            let Ok(found) = Found::in_directory(&directory, name) else { continue };
            if json.len() > 1 {
                json.push(b',');
            }
            json.extend(encoded(&Entry::in_directory(&directory, name, &path, &found))?);
            if json.len() > MAX_LIST {
                return Err(failure(Why::Invalid, "the list is longer than 16 MiB: list fewer levels at a time"));
            }
            if depth > 1 && kind(&found.stat) == libc::S_IFDIR {
                below.push((path, depth - 1));
            }
        }
        below.reverse();
        due.extend(below);
    }
    json.push(b']');
    Ok(json)
}

/// Returns the names in a directory, of at most this many bytes.
fn names(directory: &Arc<OwnedFd>, max: usize) -> Result<Vec<Vec<u8>>, Errno> {
    let directory = root::open_directory(directory)?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let (mut names, mut length) = (Vec::new(), 0);
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(&name[..], b"." | b"..") {
            // As long as the entry will be at least.
            length += name.len() + 150;
            names.push(name);
        }
        if length > max {
            break;
        }
    }
    Ok(names)
}

/// Opens a file whose content is to be sent.
fn readable(volume: &Volume, root: &Root, path: &str) -> Result<(OwnedFd, u64), Failure> {
    let path = VolumePath::new(path)?;
    let found = path.find(root)?;
    let errno = match kind(&found.stat) {
        libc::S_IFREG => None,
        libc::S_IFDIR => Some(Errno::ISDIR),
        libc::S_IFLNK => Some(Errno::LOOP),
        _ => Some(Errno::OPNOTSUPP),
    };
    let opened = errno.map_or_else(|| entry::open(root, &path, &found), Err);
    let opened = opened.and_then(|file| volume.quota.uses(&file).and(examine(&file)).map(|stat| (file, stat)));
    let (file, stat) = opened.map_err(|errno| path.failed(errno))?;
    Ok((file, stat.stx_size))
}

/// Sends the content of a file. If a sandbox makes it shorter meanwhile, the answer ends early.
fn send(mut stream: &UnixStream, file: &OwnedFd, length: u64) -> Result<(), ContentError> {
    answer(stream, &Answer::Content { length })?;
    let mut buffer = vec![0; 128 << 10];
    let mut sent = 0;
    while sent < length {
        let most = usize::try_from(length - sent).unwrap_or(usize::MAX).min(buffer.len());
        match pread(file, &mut buffer[..most], sent) {
            Ok(0) => break,
            Ok(count) => {
                stream.write_all(&buffer[..count])?;
                sent += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(ContentError::Stream(errno.into())),
        }
    }
    Ok(())
}

/// Writes a file: its content goes to a file without a name, which replaces the one that is there.
fn write(
    volume: &Volume,
    root: &Root,
    path: &str,
    owner: SetOwner,
    force: bool,
    stream: &UnixStream,
) -> Result<Vec<u8>, Failure> {
    let (path, owner) = (VolumePath::new(path)?, owner.check()?);
    let failed = |errno| path.failed(errno);
    let Some((above, name)) = path.split() else { return Err(failed(Errno::ISDIR)) };
    let parent = if force { change::make_all(volume, root, &above)? } else { above.find_directory(root)? };
    let before = match path.find(root) {
        Ok(found) if kind(&found.stat) == libc::S_IFREG => {
            let file = entry::open(root, &path, &found).map_err(failed)?;
            Ownership::of(file, u32::from(found.stat.stx_mode))
        }
        Ok(found) if kind(&found.stat) == libc::S_IFDIR => return Err(failed(Errno::ISDIR)),
        Ok(_) => return Err(failed(Errno::LOOP)),
        Err(_) => Ownership { uid: 0, gid: 0, mode: 0o644 },
    };
    let file = volume.quota.create_nameless().map_err(failed)?;
    let inode = examine(&file).map_err(failed)?.stx_ino;
    let written = receive(volume, &file, stream).and_then(|()| {
        owner.over(before).set(&file)?;
        volume.quota.name(&file, &*parent, name.bytes())
    });
    if let Err(errno) = written {
        drop(file);
        // It is removed at the latest by the next process of the volume.
        let _ = volume.quota.closed(inode);
        return Err(failed(errno));
    }
    described(root, &path)
}

/// Receives the pieces of a body.
fn receive(volume: &Volume, file: &OwnedFd, stream: &UnixStream) -> Result<(), Errno> {
    let mut offset = 0_u64;
    loop {
        let piece = frame(stream, MAX_PIECE).map_err(|_| Errno::IO)?;
        if piece.is_empty() {
            return Ok(());
        }
        let end = offset.saturating_add(piece.len() as u64);
        volume.quota.resizing(
            file,
            |size| size.max(end),
            || {
                let mut written = 0;
                while written < piece.len() {
                    match pwrite(file, &piece[written..], offset.saturating_add(written as u64)) {
                        Ok(0) => return Err(Errno::IO),
                        Ok(count) => written += count,
                        Err(Errno::INTR) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Ok(())
            },
        )?;
        offset = end;
    }
}
