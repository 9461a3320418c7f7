//! Writes one layer: the files of a project, or what changed of them, as an EROFS image. Owns the
//! metadata that files have in the guest, and the reading of their content.

use super::error::CopyInError;
use crate::{
    beneath::Root,
    index::{Content, Digest, Entry, Kind},
};
use rustix::{
    fd::OwnedFd,
    fs::{FileType, fgetxattr, flistxattr},
    io::{Errno, read},
};
use sandboxvm_layers::{ImageError, ImageWriter, Limits, NewInode, NewKind, StoredContent};
use sha2::Digest as _;
use std::{collections::HashMap, io};

/// Maximum size of the names, and of each value, of the attributes of one file in bytes.
const MAX_ATTRIBUTES: usize = 64 << 10;

/// Name and value.
type Attribute = (Vec<u8>, Vec<u8>);

/// A layer that is being written.
pub(super) struct LayerWriter {
    image: ImageWriter,
    owner: (u32, u32),
    number: u8,
    /// Content of files with several names, by their device and inode: each subvolume has its own device.
    linked: HashMap<(u64, u64), (Digest, StoredContent)>,
}

/// Content that was stored, and attributes that were read with it.
pub(super) struct Stored {
    pub(super) content: Content,
    stored: StoredContent,
    attributes: Vec<Attribute>,
}

impl LayerWriter {
    pub(super) fn new(file: OwnedFd, number: u8, owner: (u32, u32), max_depth: u16) -> Result<Self, CopyInError> {
        let limits = Limits { depth: max_depth, ..Limits::default() };
        let image = ImageWriter::new(file, &limits).map_err(|error| fail(b".")(error.into()))?;
        Ok(Self { image, owner, number, linked: HashMap::new() })
    }

    /// Stores the content of a file of the project. Returns `None` if there is no longer a file.
    pub(super) fn file(&mut self, root: &Root, path: &[u8], links: u32) -> Result<Option<Stored>, CopyInError> {
        let broken = |errno: Errno| CopyInError::File { step: "read", path: path.to_vec(), error: errno.into() };
        let file = match root.file(path) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::XDEV) => return Ok(None),
            Err(errno) => return Err(broken(errno)),
        };
        let attributes = attributes(&file).map_err(broken)?;
        let about = crate::beneath::look_at(rustix::fd::AsFd::as_fd(&file), b"").map_err(broken)?;
        let inode = (about.device, about.inode);
        if links > 1
            && let Some((digest, stored)) = self.linked.get(&inode)
        {
            return Ok(Some(self.stored(*digest, *stored, attributes)));
        }
        let (digest, stored) = self.content(path, |buffer| Ok(read(&file, buffer)?))?;
        if links > 1 {
            self.linked.insert(inode, (digest, stored));
        }
        Ok(Some(self.stored(digest, stored, attributes)))
    }

    fn stored(&self, digest: Digest, stored: StoredContent, attributes: Vec<Attribute>) -> Stored {
        let content = Content { size: stored.size(), digest, layer: self.number, offset: stored.offset() };
        Stored { content, stored, attributes }
    }

    fn content(
        &mut self,
        path: &[u8],
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<(Digest, StoredContent), CopyInError> {
        let mut digest = sha2::Sha256::new();
        let stored = self.image.content(|buffer| {
            loop {
                match read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(count) => {
                        digest.update(&buffer[..count]);
                        return Ok(count);
                    }
                    Err(error) => return Err(error),
                }
            }
        });
        Ok((digest.finalize().into(), stored.map_err(fail(path))?))
    }

    /// Adds a file. `stored` is the content of a regular file.
    pub(super) fn add(&mut self, path: &[u8], entry: &Entry, stored: Option<Stored>) -> Result<(), CopyInError> {
        let (kind, attributes) = match (&entry.kind, stored) {
            (Kind::File(_), Some(stored)) => (NewKind::File(stored.stored), stored.attributes),
            (Kind::Symlink(target), _) => (NewKind::Symlink(target.clone()), Vec::new()),
            _ => (NewKind::Directory, Vec::new()),
        };
        self.node(path, kind, entry.mode, entry.modified, attributes)
    }

    /// Hides what lower layers have at a path.
    pub(super) fn hide(&mut self, path: &[u8]) -> Result<(), CopyInError> {
        self.node(path, NewKind::Whiteout, 0, (0, 0), Vec::new())
    }

    /// Sets the metadata of the root directory.
    pub(super) fn root(&mut self, mode: u32, modified: (i64, u32)) -> Result<(), CopyInError> {
        self.node(b"", NewKind::Directory, mode, modified, Vec::new())
    }

    fn node(
        &mut self,
        path: &[u8],
        kind: NewKind,
        mode: u32,
        modified: (i64, u32),
        attributes: Vec<Attribute>,
    ) -> Result<(), CopyInError> {
        let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        let mode = u16::try_from(mode & 0o1777).unwrap_or(0);
        let (uid, gid) = self.owner;
        let inode = NewInode { kind, mode, uid, gid, modified, attributes };
        self.image.add(&names, inode).map_err(fail(path))
    }

    /// Finishes the layer.
    pub(super) fn finish(self) -> Result<u64, CopyInError> {
        self.image.finish().map_err(|error| fail(b".")(error.into()))
    }
}

fn fail(path: &[u8]) -> impl FnOnce(ImageError) -> CopyInError {
    move |error| CopyInError::Image { path: path.to_vec(), error }
}

/// Returns the attributes `user.*` of a file.
fn attributes(file: &OwnedFd) -> Result<Vec<Attribute>, Errno> {
    let mut names = [0_u8; 1024];
    let mut long = Vec::new();
    let listed = match flistxattr(file, &mut names[..]) {
        Ok(count) => &names[..count],
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            long.resize(MAX_ATTRIBUTES, 0);
            let count = flistxattr(file, &mut long[..])?;
            &long[..count]
        }
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in listed.split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0; MAX_ATTRIBUTES];
        match fgetxattr(file, name, &mut value[..]) {
            Ok(count) => {
                value.truncate(count);
                found.push((name.to_vec(), value));
            }
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Returns the digest of a file of the project, or `None` if there is no longer a file.
pub(crate) fn digest(root: &Root, path: &[u8]) -> Result<Option<(Digest, u64)>, Errno> {
    let file = match root.file(path) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::XDEV) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let (mut digest, mut size) = (sha2::Sha256::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match read(&file, &mut buffer) {
            Ok(0) => return Ok(Some((digest.finalize().into(), size))),
            Ok(count) => {
                digest.update(&buffer[..count]);
                size += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Returns the kind of a file in the index, for what has no content.
pub(super) fn plain_kind(kind: FileType, target: Option<&Vec<u8>>) -> Kind {
    match (kind, target) {
        (FileType::Symlink, Some(target)) => Kind::Symlink(target.clone()),
        _ => Kind::Directory,
    }
}
