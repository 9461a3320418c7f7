//! Unpacks an archive into a directory. Each file is written without a name or under a temporary
//! one, and then moved to its place. So no process sees an incomplete file, and the previous file
//! stays until then. No existing file is ever opened for writing.
//!
//! With [`Trust::Nothing`] the archive may be hostile. Nothing outside the directory is touched,
//! whatever the archive states and whatever an earlier archive has left in the directory. Such an
//! archive creates regular files, directories, symbolic links, and further names of its own files,
//! and nothing else. No symbolic link is ever followed, so its target does not matter.
//! [`UnpackPolicy`] limits the use of disk space and inodes. Holes count as data.
//!
//! Existing directories keep their modes and times. Those of new directories are set when no more
//! entries can be in them, deepest first.

use crate::{
    entry::{Entry, Extent, Kind, Totals},
    new_file::{NewFile, copy_over},
    place::{self, Parents, PlaceError, Reach, Temporary},
    reader::{ReadError, Reader},
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchmod,
        fchown, fsetxattr, fstat, ftruncate, futimens, linkat, mkdirat, statat, symlinkat, utimensat,
    },
    io::Errno,
};
use std::{
    collections::BTreeSet,
    io::Read,
    sync::atomic::{AtomicU64, Ordering},
};

const CHUNK: usize = 64 * 1024;
/// Maximum number of levels of directories whose modes and times are set at the end. An archive in
/// a usual order needs only the depth of its tree.
const MAX_PENDING: usize = 512;

/// Why an archive could not be unpacked completely. The entries before the error stay.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ReadError),
    /// The path of an entry is not allowed.
    #[error("refused {} of the archive: {problem}", place::shown(path))]
    Place {
        /// Path of the entry.
        path: Vec<u8>,
        /// Why it is not allowed.
        problem: PlaceError,
    },
    /// An entry is of a kind that is not created.
    #[error("refused {} of the archive: {problem}", place::shown(path))]
    Refused {
        /// Path of the entry.
        path: Vec<u8>,
        /// Why it is refused.
        problem: &'static str,
    },
    /// The content exceeds the maximum.
    #[error("the archive holds more than {0} bytes, holes counted")]
    TooLarge(u64),
    /// The number of entries exceeds the maximum.
    #[error("the archive holds more than {0} files and directories")]
    TooMany(u64),
    /// A single file was expected.
    #[error("the archive is not of one file")]
    NotSingle,
    /// The file system of the target returned an error.
    #[error("cannot {step} {}: {errno}", place::shown(path))]
    File {
        /// The step that failed.
        step: &'static str,
        /// The file, relative to the target.
        path: Vec<u8>,
        /// The error of the kernel.
        errno: Errno,
    },
}

/// How far an archive is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The archive may be hostile: everything stays below the directory, and no symbolic link is followed.
    Nothing,
    /// The archive is trusted as much as the directory. Existing symbolic links to directories are
    /// followed, and paths from the root begin at the directory.
    Target,
}

/// The limits and options of unpacking.
#[derive(Debug, Clone, Copy)]
pub struct UnpackPolicy<'a> {
    /// How far the archive is trusted.
    pub trust: Trust,
    /// Maximum number of bytes of all content, holes included.
    pub max_bytes: u64,
    /// Maximum number of entries.
    pub max_entries: u64,
    /// Give files the owners and the set-user-ID and set-group-ID bits that the archive states. Otherwise they
    /// belong to the user that unpacks, and have none of these bits.
    pub keep_owner: bool,
    /// Give the directory itself the mode and time that the archive states for `.`.
    pub adopt_root: bool,
    /// Bits that are cleared in all modes, whatever the archive states.
    pub umask: u32,
    /// Counter to which the number of written bytes of content is written.
    pub progress: Option<&'a AtomicU64>,
}

/// Unpacks `reader` into `directory`.
///
/// # Errors
/// Every [`UnpackError`].
pub fn unpack<R: Read>(
    reader: &mut Reader<R>,
    directory: OwnedFd,
    policy: &UnpackPolicy<'_>,
) -> Result<Totals, UnpackError> {
    let mut unpacking = Unpacking::new(directory, policy);
    while let Some(entry) = reader.next_entry()? {
        unpacking.count(&entry)?;
        unpacking.entry(reader, entry)?;
    }
    while let Some(pending) = unpacking.pending.pop() {
        unpacking.settle(&pending)?;
    }
    Ok(unpacking.totals)
}

/// Unpacks an archive of one regular file or symbolic link as `name` in `directory`, whatever its
/// name in the archive.
///
/// # Errors
/// Every [`UnpackError`]. Nothing was created then.
pub fn unpack_single<R: Read>(
    reader: &mut Reader<R>,
    directory: OwnedFd,
    name: &[u8],
    policy: &UnpackPolicy<'_>,
) -> Result<Totals, UnpackError> {
    let mut unpacking = Unpacking::new(directory, policy);
    let mut entry = reader.next_entry()?.ok_or(UnpackError::NotSingle)?;
    if !matches!(entry.kind, Kind::File { .. } | Kind::Symlink(_)) {
        return Err(UnpackError::NotSingle);
    }
    entry.path = name.to_vec();
    unpacking.count(&entry)?;
    unpacking.entry(reader, entry)?;
    Ok(unpacking.totals)
}

struct Unpacking<'a> {
    policy: &'a UnpackPolicy<'a>,
    parents: Parents,
    totals: Totals,
    /// Device and inode of the files that were created, if only these may get further names.
    made: BTreeSet<(u64, u64)>,
    /// Whether files have no name until they are complete. False in a sandbox: its agent is never
    /// killed, so that would only cost time.
    may_be_unnamed: bool,
    /// New directories in which more entries may follow, each within the one before.
    pending: Vec<(Vec<u8>, Entry)>,
    buffer: Vec<u8>,
}

impl<'a> Unpacking<'a> {
    fn new(directory: OwnedFd, policy: &'a UnpackPolicy<'a>) -> Self {
        let reach = if policy.trust == Trust::Nothing { Reach::Beneath } else { Reach::Anywhere };
        Self {
            policy,
            parents: Parents::new(directory, reach),
            totals: Totals::default(),
            made: BTreeSet::new(),
            may_be_unnamed: policy.trust == Trust::Nothing,
            pending: Vec::new(),
            buffer: vec![0; CHUNK],
        }
    }

    /// Checks an entry against the limits, before anything is created.
    fn count(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.totals.entries += 1;
        if self.totals.entries > self.policy.max_entries {
            return Err(UnpackError::TooMany(self.policy.max_entries));
        }
        if let Kind::File { size, .. } = entry.kind {
            self.totals.bytes = self.totals.bytes.saturating_add(size);
            if self.totals.bytes > self.policy.max_bytes {
                return Err(UnpackError::TooLarge(self.policy.max_bytes));
            }
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, reader: &mut Reader<R>, entry: Entry) -> Result<(), UnpackError> {
        let normal = self.normal(&entry, &entry.path)?;
        // Entries that are not within a directory come after all that are.
        while let Some(pending) = self.pending.pop_if(|(directory, _)| !is_within(directory, &normal)) {
            self.settle(&pending)?;
        }
        if normal.is_empty() && entry.kind != Kind::Directory {
            return Err(UnpackError::Place { path: entry.path, problem: PlaceError::Nameless });
        }
        match &entry.kind {
            Kind::Directory => self.directory(normal, entry),
            Kind::File { size, extents } => {
                let (size, extents) = (*size, extents.as_deref());
                self.file(reader, &normal, &entry, size, extents)
            }
            Kind::Symlink(target) => self.symlink(&normal, &entry, target),
            Kind::HardLink(target) => self.hard_link(&normal, &entry, target),
            Kind::Device { .. } | Kind::Fifo | Kind::Other(_) => {
                let problem = match entry.kind {
                    Kind::Device { .. } => "devices are not made",
                    Kind::Fifo => "named pipes are not made",
                    _ => "it is neither a file, a directory nor a link",
                };
                Err(UnpackError::Refused { path: entry.path.clone(), problem })
            }
        }
    }

    fn normal(&self, entry: &Entry, path: &[u8]) -> Result<Vec<u8>, UnpackError> {
        place::normal(path, self.parents.reach())
            .map_err(|problem| UnpackError::Place { path: entry.path.clone(), problem })
    }

    fn directory(&mut self, normal: Vec<u8>, entry: Entry) -> Result<(), UnpackError> {
        if normal.is_empty() {
            let is_first = self.policy.adopt_root && self.pending.is_empty();
            return if is_first { self.pend(normal, entry) } else { Ok(()) };
        }
        let (above, name) = place::split(&normal);
        let reach = self.parents.reach();
        let parent = self.parents.open(above).map_err(fail("open the directory above", &entry))?;
        match mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => self.pend(normal, entry),
            Err(Errno::EXIST) => {
                // If the target is trusted, a link to a directory can replace a directory.
                let flags = if reach == Reach::Beneath { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
                let about = statat(parent, name, flags).map_err(fail("look at", &entry))?;
                if FileType::from_raw_mode(about.st_mode) == FileType::Directory {
                    Ok(())
                } else {
                    Err(fail("make the directory", &entry)(Errno::NOTDIR))
                }
            }
            Err(errno) => Err(fail("make the directory", &entry)(errno)),
        }
    }

    /// Gives a new directory its attributes, which may be large, and stores the rest until no more
    /// entries are in it.
    fn pend(&mut self, normal: Vec<u8>, mut entry: Entry) -> Result<(), UnpackError> {
        if !entry.attributes.is_empty() {
            let (base, reach) = (self.parents.base(), self.parents.reach());
            let directory =
                place::open_directory(base, &normal, reach, OFlags::RDONLY).map_err(fail("open", &entry))?;
            self.totals.attributes_lost += set_attributes(directory.as_fd(), &entry);
            entry.attributes = Vec::new();
        }
        if self.pending.len() < MAX_PENDING {
            self.pending.push((normal, entry));
        }
        Ok(())
    }

    /// Gives a new directory its mode, owner and time.
    fn settle(&mut self, (normal, entry): &(Vec<u8>, Entry)) -> Result<(), UnpackError> {
        let fail = fail("set mode and time of", entry);
        let (base, reach) = (self.parents.base(), self.parents.reach());
        let directory = match place::open_directory(base, normal, reach, OFlags::RDONLY) {
            // A later entry with the same name has replaced it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            opened => opened.map_err(&fail)?,
        };
        adopt(directory.as_fd(), entry, self.policy).map_err(&fail)
    }

    fn file<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        normal: &[u8],
        entry: &Entry,
        size: u64,
        extents: Option<&[Extent]>,
    ) -> Result<(), UnpackError> {
        let (above, name) = place::split(normal);
        let policy = self.policy;
        let mut buffer = std::mem::take(&mut self.buffer);
        let parent = self.parents.open(above).map_err(fail("open the directory above", entry))?;
        let new = NewFile::make(parent, &mut self.may_be_unnamed).map_err(fail("make a file for", entry))?;
        let file = &new.file;
        let whole = [Extent { offset: 0, len: size }];
        for extent in extents.unwrap_or(&whole) {
            write_extent(reader, file, extent, &mut buffer, entry, policy.progress)?;
        }
        self.buffer = buffer;
        if extents.is_some() {
            ftruncate(file, size).map_err(fail("set the size of", entry))?;
        }
        let lost = set_attributes(file.as_fd(), entry);
        adopt(file.as_fd(), entry, policy).map_err(fail("set owner, mode and time of", entry))?;
        let about = fstat(file).map_err(fail("look at", entry))?;
        let (content, placed) = new.put(name);
        match placed {
            // Another file is mounted over it.
            Err(Errno::BUSY) if policy.trust == Trust::Target => {
                let over = copy_over(&content, parent, name).map_err(fail("write over", entry))?;
                set_attributes(over.as_fd(), entry);
                adopt(over.as_fd(), entry, policy).map_err(fail("set owner, mode and time of", entry))?;
            }
            placed => placed.map_err(fail("put in its place", entry))?,
        }
        self.totals.attributes_lost += lost;
        if policy.trust == Trust::Nothing {
            self.made.insert((about.st_dev, about.st_ino));
        }
        Ok(())
    }

    fn symlink(&mut self, normal: &[u8], entry: &Entry, target: &[u8]) -> Result<(), UnpackError> {
        let (above, name) = place::split(normal);
        let policy = self.policy;
        let parent = self.parents.open(above).map_err(fail("open the directory above", entry))?;
        let (temporary, made) = Temporary::make(parent, false, |name| {
            symlinkat(target, parent, name)?;
            if policy.keep_owner {
                let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
                chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
            statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        })
        .map_err(fail("make the symbolic link", entry))?;
        temporary.rename(name).map_err(fail("put in its place", entry))?;
        if policy.trust == Trust::Nothing {
            self.made.insert((made.st_dev, made.st_ino));
        }
        Ok(())
    }

    fn hard_link(&mut self, normal: &[u8], entry: &Entry, target: &[u8]) -> Result<(), UnpackError> {
        let target = self.normal(entry, target)?;
        let (target_above, target_name) = place::split(&target);
        let reach = self.parents.reach();
        let old = place::open_directory(self.parents.base(), target_above, reach, OFlags::PATH)
            .map_err(fail("open the directory of the file to link to, for", entry))?;
        let about = statat(&old, target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("look at the file to link to, for", entry))?;
        if self.policy.trust == Trust::Nothing && !self.made.contains(&(about.st_dev, about.st_ino)) {
            let problem = "it is a hard link to a file that is not from the archive";
            return Err(UnpackError::Refused { path: entry.path.clone(), problem });
        }
        let (above, name) = place::split(normal);
        let parent = self.parents.open(above).map_err(fail("open the directory above", entry))?;
        let (temporary, ()) =
            Temporary::make(parent, false, |name| linkat(&old, target_name, parent, name, AtFlags::empty()))
                .map_err(fail("make the hard link", entry))?;
        temporary.rename(name).map_err(fail("put in its place", entry))
    }
}

/// Sets owner, mode and time, in an order in which none changes another.
fn adopt(file: BorrowedFd<'_>, entry: &Entry, policy: &UnpackPolicy<'_>) -> Result<(), Errno> {
    if policy.keep_owner {
        fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    }
    let kept = if policy.keep_owner { 0o7777 } else { 0o1777 };
    fchmod(file, Mode::from_raw_mode(entry.mode & kept & !policy.umask))?;
    futimens(file, &times(entry))
}

fn write_extent<R: Read>(
    reader: &mut Reader<R>,
    file: &OwnedFd,
    extent: &Extent,
    buffer: &mut [u8],
    entry: &Entry,
    progress: Option<&AtomicU64>,
) -> Result<(), UnpackError> {
    let mut at = extent.offset;
    let mut left = extent.len;
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = reader.read_content(&mut buffer[..wanted])?;
        let mut bytes = &buffer[..count];
        while !bytes.is_empty() {
            match rustix::io::pwrite(file, bytes, at) {
                Ok(written) => {
                    at += written as u64;
                    bytes = &bytes[written..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fail("write", entry)(errno)),
            }
        }
        left -= count as u64;
        if let Some(progress) = progress {
            progress.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn fail(step: &'static str, entry: &Entry) -> impl Fn(Errno) -> UnpackError {
    let path = entry.path.clone();
    move |errno| UnpackError::File { step, path: path.clone(), errno }
}

fn is_within(directory: &[u8], path: &[u8]) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

fn times(entry: &Entry) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: entry.modified.seconds,
            tv_nsec: i64::from(entry.modified.nanoseconds.min(999_999_999)),
        },
    }
}

/// Sets the attributes. Returns how many the file system did not accept.
fn set_attributes(file: BorrowedFd<'_>, entry: &Entry) -> u64 {
    let lost = entry
        .attributes
        .iter()
        .filter(|(name, value)| name.contains(&0) || fsetxattr(file, &name[..], value, XattrFlags::empty()).is_err());
    lost.count() as u64
}
