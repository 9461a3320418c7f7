//! Packs the upper directory of an overlay as the layer of a container image (OCI image
//! specification, layer.md): what the overlay adds to the directory below it, and what it removes.
//!
//! ```text
//! in the upper directory                         in the layer
//! character device 0:0 NAME                      empty file .wh.NAME
//! directory with trusted.overlay.opaque=y        the directory, then empty file .wh..wh..opq in it
//! other trusted.* attributes                     nothing
//! user.*, security.capability, POSIX ACLs        the same attributes of files and directories
//! socket                                         nothing
//! file with holes                                the file with zeros
//! ```
//! The same tree gives the same bytes: names are sorted, removals first, and entries that stand for
//! removals have no owner and no time. The root itself has no entry. What an overlay expresses and a
//! layer cannot is an error, and so is a file whose name would mean a removal. Apart from that,
//! changes meanwhile are treated as by [`crate::pack`].
//!
//! Memory: as [`crate::pack`], and the names of all directories on the path to the current file, at
//! most [`MAX_NAME_MEMORY`]. It never writes to the tree and follows no link.

use crate::{
    attributes::{self, Attributes},
    entry::{Entry, Kind, MAX_PATH, Timestamp, Totals},
    pack::{Form, MAX_DEPTH, PackError, PackOptions, Packing, entry, open_if_there},
    writer::Writer,
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat},
    io::Errno,
};
use std::io::Write;

/// Maximum memory in bytes for names: about 700,000 names of 25 bytes.
const MAX_NAME_MEMORY: usize = 64 << 20;
/// Memory of a name in bytes, besides its letters.
const NAME_OVERHEAD: usize = 64;

/// Prefix of the name of an entry that removes a file.
const REMOVAL: &[u8] = b".wh.";
/// Name of the entry that hides what lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A file that may be packed.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Path of the file relative to the root, without a `/` at either end.
    pub path: &'a [u8],
    /// Directory of the file.
    pub parent: BorrowedFd<'a>,
    /// Name of the file in that directory.
    pub name: &'a [u8],
    /// Attributes of the file.
    pub about: &'a Stat,
}

/// Packs `upper`, which must be open for reading. The archive lacks files for which `is_left_out`
/// returns true, and everything below them.
///
/// # Errors
/// Every [`PackError`] except `NotAFile`. The archive is then incomplete.
pub fn pack_layer<W: Write>(
    writer: &mut Writer<W>,
    upper: BorrowedFd<'_>,
    is_left_out: &dyn Fn(Candidate<'_>) -> Result<bool, Errno>,
) -> Result<Totals, PackError> {
    let fail = |errno| PackError::File { step: "list", path: b".".to_vec(), errno };
    let root = openat(upper, ".", directory_flags(), Mode::empty()).map_err(fail)?;
    let device = fstat(&root).map_err(fail)?.st_dev;
    let packing = Packing::new(writer, Form::Layer, PackOptions::default(), device);
    let mut layer = Layer { packing, is_left_out, name_memory: 0 };
    layer.content(root, b"", 0)?;
    Ok(layer.packing.totals)
}

/// True unless it is a character device, which may be a removal; and the name.
type Name = (bool, Box<[u8]>);

struct Layer<'a, W> {
    packing: Packing<'a, W>,
    is_left_out: &'a dyn Fn(Candidate<'_>) -> Result<bool, Errno>,
    name_memory: usize,
}

impl<W: Write> Layer<'_, W> {
    /// Packs what is in a directory.
    fn content(&mut self, directory: OwnedFd, path: &[u8], depth: usize) -> Result<(), PackError> {
        let fail = |errno| PackError::File { step: "list", path: path.to_vec(), errno };
        let mut listing = Dir::new(directory).map_err(fail)?;
        let before = self.name_memory;
        let names = self.names(&mut listing, path)?;
        let directory = listing.fd().map_err(fail)?;
        for (_, name) in &names {
            let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            self.one(directory, name, &path, depth + 1)?;
        }
        self.name_memory = before;
        Ok(())
    }

    /// Returns the names of a directory in the order of the archive.
    fn names(&mut self, listing: &mut Dir, path: &[u8]) -> Result<Vec<Name>, PackError> {
        let fail = |errno| PackError::File { step: "list", path: path.to_vec(), errno };
        let mut names = Vec::new();
        while let Some(found) = listing.read() {
            let found = found.map_err(fail)?;
            let name = found.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            self.name_memory += name.len() + NAME_OVERHEAD;
            if self.name_memory > MAX_NAME_MEMORY {
                return Err(PackError::TooMany(path.to_vec()));
            }
            let is_no_device = match found.file_type() {
                // Not all file systems have the type in the directory.
                FileType::Unknown => statat(listing.fd().map_err(fail)?, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(true, |about| FileType::from_raw_mode(about.st_mode) != FileType::CharacterDevice),
                kind => kind != FileType::CharacterDevice,
            };
            names.push((is_no_device, name.into()));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Packs the file `name` of directory `parent` as `path`, unless it no longer exists.
    fn one(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8], depth: usize) -> Result<(), PackError> {
        let fail = |step| move |errno| PackError::File { step, path: path.to_vec(), errno };
        if path.len() > MAX_PATH || depth > MAX_DEPTH {
            return Err(PackError::TooDeep(path.to_vec()));
        }
        let about = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(fail("look at")(errno)),
        };
        if name.starts_with(REMOVAL) {
            let problem = "a name that begins with .wh. means there that a file was removed";
            return Err(PackError::NotInLayers { path: path.to_vec(), problem });
        }
        let kind = FileType::from_raw_mode(about.st_mode);
        if kind == FileType::CharacterDevice && about.st_rdev == 0 {
            return self.mark(&path[..path.len() - name.len()], &[REMOVAL, name].concat());
        }
        if (self.is_left_out)(Candidate { path, parent, name, about: &about }).map_err(fail("look at"))? {
            return Ok(());
        }
        match kind {
            FileType::Directory => {
                let Some(directory) = open_if_there(parent, name, directory_flags()).map_err(fail("open"))? else {
                    return Ok(());
                };
                self.directory(directory, path, depth)
            }
            FileType::RegularFile => {
                // Another file may have taken its place. With these flags opening it does not block.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
                let Some(file) = open_if_there(parent, name, flags).map_err(fail("open"))? else { return Ok(()) };
                let about = fstat(&file).map_err(fail("look at"))?;
                match self.packing.links.get(&(about.st_dev, about.st_ino)) {
                    Some(first) => {
                        let first = Kind::HardLink(first.clone());
                        self.without_content(entry(path.to_vec(), first, &about, Vec::new()))
                    }
                    None => self.packing.file(&file, path),
                }
            }
            FileType::Symlink => match readlinkat(parent, name, Vec::new()) {
                Ok(target) => {
                    self.without_content(entry(path.to_vec(), Kind::Symlink(target.into_bytes()), &about, Vec::new()))
                }
                Err(Errno::NOENT | Errno::INVAL) => Ok(()),
                Err(errno) => Err(fail("read the link")(errno)),
            },
            FileType::CharacterDevice | FileType::BlockDevice => {
                let (major, minor) = (major(about.st_rdev), minor(about.st_rdev));
                let device = Kind::Device { is_block: kind == FileType::BlockDevice, major, minor };
                self.without_content(entry(path.to_vec(), device, &about, Vec::new()))
            }
            FileType::Fifo => self.without_content(entry(path.to_vec(), Kind::Fifo, &about, Vec::new())),
            FileType::Socket | FileType::Unknown => {
                self.packing.totals.left_out += 1;
                Ok(())
            }
        }
    }

    fn directory(&mut self, directory: OwnedFd, path: &[u8], depth: usize) -> Result<(), PackError> {
        let fail = |step| move |errno| PackError::File { step, path: path.to_vec(), errno };
        let about = fstat(&directory).map_err(fail("look at"))?;
        let Attributes { kept, is_opaque } =
            attributes::of_layer(directory.as_fd()).map_err(|error| PackError::of_attributes(error, path))?;
        let shown = [path, b"/"].concat();
        self.without_content(entry(shown.clone(), Kind::Directory, &about, kept))?;
        if is_opaque {
            self.mark(&shown, OPAQUE)?;
        }
        self.content(directory, path, depth)
    }

    /// Writes an empty file that stands for a removal. `above` is empty or ends with `/`.
    fn mark(&mut self, above: &[u8], name: &[u8]) -> Result<(), PackError> {
        self.without_content(Entry {
            path: [above, name].concat(),
            kind: Kind::File { size: 0, extents: None },
            mode: 0o600,
            uid: 0,
            gid: 0,
            modified: Timestamp::default(),
            attributes: Vec::new(),
        })
    }

    fn without_content(&mut self, entry: Entry) -> Result<(), PackError> {
        self.packing.begin(entry)?;
        Ok(self.packing.writer.end()?)
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW
}
