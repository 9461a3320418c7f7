//! Packs a directory into an archive, while other processes may change it. Files that vanish are
//! omitted. Of a file that grows, only its former length is packed. A file that shrinks is packed
//! with its new length if it fits the buffer. If it is longer, its length was already written, and
//! no other bytes may replace the missing ones: the archive ends with an error. So packing always
//! ends, and each entry is complete.
//!
//! No symbolic link is followed, except the one that names the tree if the caller asks for it.
//! Memory: the names of one directory that is being read, one open file descriptor for each level,
//! at most [`MAX_DEPTH`], and the paths of files with several names, at most [`MAX_LINK_MEMORY`].

use crate::{
    attributes::{self, AttributesError},
    entry::{Entry, Extent, Kind, MAX_PATH, Timestamp, Totals},
    sparse,
    writer::Writer,
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};

/// Maximum number of levels of directories.
pub(crate) const MAX_DEPTH: usize = 256;
/// Maximum memory in bytes for files with several names. Further ones are packed once for each
/// name.
const MAX_LINK_MEMORY: usize = 8 << 20;
const CHUNK: usize = 64 * 1024;

/// Why a tree could not be packed completely.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file cannot be read.
    #[error("cannot {step} {}: {errno}", crate::place::shown(path))]
    File {
        /// The step that failed.
        step: &'static str,
        /// The file, relative to the tree.
        path: Vec<u8>,
        /// The error of the kernel.
        errno: Errno,
    },
    /// A file became shorter while it was read.
    #[error("{} became shorter while it was read", crate::place::shown(.0))]
    Shrank(Vec<u8>),
    /// An archive cannot contain a file of this kind, and it is the tree itself.
    #[error("{} is neither a regular file, a directory nor a symbolic link", crate::place::shown(.0))]
    NotAFile(Vec<u8>),
    /// A path is longer than Linux accepts, or a directory is too deep.
    #[error("{} is too long a path or too deep a directory to be copied", crate::place::shown(.0))]
    TooDeep(Vec<u8>),
    /// A directory has more entries than are sorted in memory.
    #[error("{} has too many entries to be packed in order", crate::place::shown(.0))]
    TooMany(Vec<u8>),
    /// A layer cannot express this file.
    #[error("{} cannot be part of a layer: {problem}", crate::place::shown(path))]
    NotInLayers {
        /// The file, relative to the tree.
        path: Vec<u8>,
        /// Why it cannot.
        problem: &'static str,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive: {0}")]
    Output(#[from] io::Error),
}

impl PackError {
    pub(crate) fn of_attributes(error: AttributesError, path: &[u8]) -> Self {
        let path = path.to_vec();
        match error {
            AttributesError::Kernel(errno) => Self::File { step: "read the attributes of", path, errno },
            AttributesError::NotInLayers(problem) => Self::NotInLayers { path, problem },
        }
    }
}

/// How a tree is packed.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackOptions<'a> {
    /// If a symbolic link names the tree, pack its target.
    pub follow: bool,
    /// Omit the content of directories on which other file systems are mounted.
    pub one_filesystem: bool,
    /// Counter to which the number of packed bytes of content is written.
    pub progress: Option<&'a AtomicU64>,
}

/// Packs the file or directory `path`, relative to `base`, as `name`. The name `.` packs only the
/// content of a directory.
///
/// # Errors
/// Every [`PackError`]. The archive is then incomplete.
pub fn pack<W: Write>(
    writer: &mut Writer<W>,
    base: BorrowedFd<'_>,
    path: &[u8],
    name: &[u8],
    options: PackOptions<'_>,
) -> Result<Totals, PackError> {
    let flags = if options.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let fail = |step| move |errno| PackError::File { step, path: path.to_vec(), errno };
    let about = statat(base, path, flags).map_err(fail("look at"))?;
    let mut packing = Packing::new(writer, Form::Copy, options, about.st_dev);
    match FileType::from_raw_mode(about.st_mode) {
        FileType::RegularFile | FileType::Directory | FileType::Symlink => {}
        _ => return Err(PackError::NotAFile(path.to_vec())),
    }
    let follow = if options.follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    if packing.one(base, path, name, &about, follow, 0)? {
        Ok(packing.totals)
    } else {
        Err(PackError::File { step: "open", path: path.to_vec(), errno: Errno::NOENT })
    }
}

/// What an archive is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A copy: with holes, and with the attributes that any user may set.
    Copy,
    /// The layer of an image: see [`crate::layer`].
    Layer,
}

/// An archive that is being written.
pub(crate) struct Packing<'a, W> {
    pub(crate) writer: &'a mut Writer<W>,
    form: Form,
    options: PackOptions<'a>,
    device: u64,
    /// Files with several names, and the first name of each.
    pub(crate) links: BTreeMap<(u64, u64), Vec<u8>>,
    link_memory: usize,
    pub(crate) totals: Totals,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Packing<'a, W> {
    pub(crate) fn new(writer: &'a mut Writer<W>, form: Form, options: PackOptions<'a>, device: u64) -> Self {
        let (links, totals) = (BTreeMap::new(), Totals::default());
        Self { writer, form, options, device, links, link_memory: 0, totals, buffer: vec![0; CHUNK] }
    }

    /// Packs `file` of directory `parent` as `path`. Returns false if it no longer exists.
    fn one(
        &mut self,
        parent: BorrowedFd<'_>,
        file: &[u8],
        path: &[u8],
        about: &Stat,
        follow: OFlags,
        depth: usize,
    ) -> Result<bool, PackError> {
        let fail = |step| move |errno| PackError::File { step, path: path.to_vec(), errno };
        if path.len() > MAX_PATH || depth > MAX_DEPTH {
            return Err(PackError::TooDeep(path.to_vec()));
        }
        // Another file may have taken its place. With these flags opening it does not block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | follow;
        match FileType::from_raw_mode(about.st_mode) {
            FileType::Symlink => {
                let target = match readlinkat(parent, file, Vec::new()) {
                    Ok(target) => target.into_bytes(),
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
                    Err(errno) => return Err(fail("read the link")(errno)),
                };
                self.begin(entry(path.to_vec(), Kind::Symlink(target), about, Vec::new()))?;
                self.writer.end()?;
                Ok(true)
            }
            FileType::RegularFile => {
                if let Some(first) = self.links.get(&(about.st_dev, about.st_ino)) {
                    let link = entry(path.to_vec(), Kind::HardLink(first.clone()), about, Vec::new());
                    self.begin(link)?;
                    self.writer.end()?;
                    return Ok(true);
                }
                let Some(opened) = open_if_there(parent, file, flags).map_err(fail("open"))? else { return Ok(false) };
                self.file(&opened, path).map(|()| true)
            }
            FileType::Directory => {
                let flags = flags | OFlags::DIRECTORY;
                let Some(opened) = open_if_there(parent, file, flags).map_err(fail("open"))? else { return Ok(false) };
                self.directory(opened, path, depth).map(|()| true)
            }
            _ => {
                self.totals.left_out += 1;
                Ok(true)
            }
        }
    }

    pub(crate) fn begin(&mut self, entry: Entry) -> Result<(), PackError> {
        self.totals.entries += 1;
        Ok(self.writer.begin(&entry)?)
    }

    pub(crate) fn file(&mut self, file: &OwnedFd, path: &[u8]) -> Result<(), PackError> {
        let fail = |step| move |errno| PackError::File { step, path: path.to_vec(), errno };
        // Checks the opened file, which may be another one than before.
        let about = fstat(file).map_err(fail("look at"))?;
        if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
            self.totals.left_out += 1;
            return Ok(());
        }
        let size = u64::try_from(about.st_size).unwrap_or(0);
        let is_allocated = u64::try_from(about.st_blocks).unwrap_or(0).saturating_mul(512) >= size;
        let is_sparse = self.form == Form::Copy && !is_allocated;
        if size <= CHUNK as u64 && !is_sparse {
            return self.small_file(file, path, &about, size);
        }
        let extents = if is_sparse { sparse::find(file.as_fd(), size) } else { None };
        self.begin_file(file, path, &about, Kind::File { size, extents: extents.clone() })?;
        let whole = [Extent { offset: 0, len: size }];
        let extents = extents.as_deref().unwrap_or(&whole);
        for (index, extent) in extents.iter().enumerate() {
            // A file that ends with a hole may have lost it without losing a byte. This is noticed
            // before a reader has all bytes.
            let must_be = if index + 1 == extents.len() { size } else { 0 };
            self.extent(file, path, *extent, must_be)?;
        }
        self.writer.end()?;
        self.totals.bytes += size;
        Ok(())
    }

    /// Packs a file that fits the buffer, with the length that it has when it is read.
    fn small_file(&mut self, file: &OwnedFd, path: &[u8], about: &Stat, size: u64) -> Result<(), PackError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let wanted = buffer.len().min(usize::try_from(size).unwrap_or(CHUNK));
        let mut filled = 0;
        while filled < wanted {
            match rustix::io::pread(file, &mut buffer[filled..wanted], filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(PackError::File { step: "read", path: path.to_vec(), errno }),
            }
        }
        let size = filled as u64;
        self.begin_file(file, path, about, Kind::File { size, extents: None })?;
        self.writer.content(&buffer[..filled])?;
        self.writer.end()?;
        self.buffer = buffer;
        self.totals.bytes += size;
        if let Some(progress) = self.options.progress {
            progress.fetch_add(size, Ordering::Relaxed);
        }
        Ok(())
    }

    fn begin_file(&mut self, file: &OwnedFd, path: &[u8], about: &Stat, kind: Kind) -> Result<(), PackError> {
        let attributes = match self.form {
            Form::Copy => attributes::of_copy(file.as_fd()),
            Form::Layer => {
                attributes::of_layer(file.as_fd()).map_err(|error| PackError::of_attributes(error, path))?.kept
            }
        };
        self.begin(entry(path.to_vec(), kind, about, attributes))?;
        if about.st_nlink > 1 && self.link_memory + path.len() < MAX_LINK_MEMORY {
            self.link_memory += path.len() + 64;
            self.links.insert((about.st_dev, about.st_ino), path.to_vec());
        }
        Ok(())
    }

    /// Packs an extent. Before its end is packed, the file must still have the length `must_be`.
    fn extent(&mut self, file: &OwnedFd, path: &[u8], extent: Extent, must_be: u64) -> Result<(), PackError> {
        let Extent { offset: mut at, len: mut left } = extent;
        let fail = |step| move |errno| PackError::File { step, path: path.to_vec(), errno };
        while left > 0 {
            let wanted = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
            let count = match rustix::io::pread(file, &mut self.buffer[..wanted], at) {
                Ok(0) => return Err(PackError::Shrank(path.to_vec())),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(fail("read")(errno)),
            };
            let ends_with_hole = at + left < must_be;
            if ends_with_hole && count as u64 == left {
                let size = fstat(file).map_err(fail("look at"))?.st_size;
                if u64::try_from(size).unwrap_or(0) < must_be {
                    return Err(PackError::Shrank(path.to_vec()));
                }
            }
            self.writer.content(&self.buffer[..count])?;
            if let Some(progress) = self.options.progress {
                progress.fetch_add(count as u64, Ordering::Relaxed);
            }
            at += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    fn directory(&mut self, directory: OwnedFd, path: &[u8], depth: usize) -> Result<(), PackError> {
        let fail = |step| move |errno| PackError::File { step, path: path.to_vec(), errno };
        let about = fstat(&directory).map_err(fail("look at"))?;
        let shown = [path, b"/"].concat();
        self.begin(entry(shown, Kind::Directory, &about, attributes::of_copy(directory.as_fd())))?;
        self.writer.end()?;
        if self.options.one_filesystem && about.st_dev != self.device {
            return Ok(());
        }
        let mut names = Dir::new(directory).map_err(fail("list"))?;
        while let Some(name) = names.read() {
            let name = name.map_err(fail("list"))?;
            let name = name.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = if path == b"." { [b"./", name].concat() } else { [path, b"/", name].concat() };
            let directory = names.fd().map_err(fail("list"))?;
            let about = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(about) => about,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(PackError::File { step: "look at", path, errno }),
            };
            self.one(directory, name, &path, &about, OFlags::NOFOLLOW, depth + 1)?;
        }
        Ok(())
    }
}

/// Opens a file. Returns `None` if it vanished, or if a file of another kind took its place.
pub(crate) fn open_if_there(parent: BorrowedFd<'_>, file: &[u8], flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    match openat(parent, file, flags, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn entry(path: Vec<u8>, kind: Kind, about: &Stat, attributes: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
    Entry {
        path,
        kind,
        mode: about.st_mode & 0o7777,
        uid: about.st_uid,
        gid: about.st_gid,
        modified: Timestamp {
            seconds: about.st_mtime,
            nanoseconds: u32::try_from(about.st_mtime_nsec).unwrap_or(0).min(999_999_999),
        },
        attributes,
    }
}
