//! Entries of directories.

use super::{Outcome, Owner, Server, stale_if_gone};
use crate::{
    handles::{Handle, Opened},
    nodes::ROOT,
    protocol::{Directory, DirectoryEntry, Name, Reply},
    root::{self, Identity},
};
use rustix::{
    fs::{
        AtFlags, FileType, OFlags, RawDir, RenameFlags, SeekFrom, linkat, mkdirat, renameat_with, seek, symlinkat,
        unlinkat,
    },
    io::Errno,
};
use std::{
    mem::MaybeUninit,
    sync::{Arc, Mutex, PoisonError},
};

/// Size in bytes of the buffer for entries of the host.
const BUFFER: usize = 32 << 10;
/// Maximum length of the target of a link in bytes.
const MAX_TARGET: usize = 4095;

impl Server {
    pub(super) fn symlink(&self, parent: u64, name: Name<'_>, target: &[u8]) -> Outcome {
        if target.is_empty() || target.len() > MAX_TARGET {
            return Err(Errno::NAMETOOLONG);
        }
        let directory = self.directory(parent)?;
        self.adding(|| symlinkat(target, &directory, name.bytes()))?;
        self.made(parent, name)
    }

    /// Makes a regular file, and nothing else: devices, named pipes and sockets of a guest do not belong on
    /// the host.
    pub(super) fn make_node(&self, parent: u64, name: Name<'_>, mode: u32, maker: Owner) -> Outcome {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::PERM);
        }
        let directory = self.directory(parent)?;
        let flags = OFlags::WRONLY | OFlags::EXCL;
        let file = self.adding(|| root::create(&directory, name, flags, self.host_mode(mode, false)))?;
        self.give(&file, maker, mode)?;
        self.made(parent, name)
    }

    pub(super) fn make_directory(&self, parent: u64, name: Name<'_>, mode: u32, maker: Owner) -> Outcome {
        let directory = self.directory(parent)?;
        self.adding(|| mkdirat(&directory, name.bytes(), self.host_mode(mode, true)))?;
        if self.is_volume() {
            self.give(root::open_below(&directory, name.bytes())?, maker, mode)?;
        }
        self.made(parent, name)
    }

    pub(super) fn unlink(&self, parent: u64, name: Name<'_>, is_directory: bool) -> Outcome {
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let directory = self.directory(parent)?;
        self.removing(&directory, name.bytes(), || unlinkat(&directory, name.bytes(), flags))?;
        Ok(Reply::empty())
    }

    pub(super) fn rename(&self, from: (u64, Name<'_>), to: (u64, Name<'_>), flags: u32) -> Outcome {
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (old, new) = (self.directory(from.0)?, self.directory(to.0)?);
        let (source, target) = ((&old, from.1.bytes()), (&new, to.1.bytes()));
        let rename = || renameat_with(&old, source.1, &new, target.1, flags);
        self.renaming(source, target, flags.contains(RenameFlags::EXCHANGE), rename)?;
        // Best effort: a node that is not found where it is expected is stale.
        if let Ok(stat) = root::describe(&new, to.1) {
            self.nodes().moved(Identity::from(&stat), to.0, to.1);
        }
        if flags.contains(RenameFlags::EXCHANGE)
            && let Ok(stat) = root::describe(&old, from.1)
        {
            self.nodes().moved(Identity::from(&stat), from.0, from.1);
        }
        Ok(Reply::empty())
    }

    pub(super) fn link(&self, of: u64, parent: u64, name: Name<'_>) -> Outcome {
        if of == ROOT {
            return Err(Errno::PERM);
        }
        let directory = self.directory(parent)?;
        let place = self.place(of)?;
        let old = Name::new(&place.name)?;
        let stat = root::describe(&place.parent, old).map_err(stale_if_gone)?;
        if Identity::from(&stat) != place.identity {
            return Err(Errno::STALE);
        }
        // Without flags, linkat(2) links a symbolic link itself. At worst this links another file of the
        // share, which has taken the name meanwhile.
        self.adding(|| linkat(&place.parent, old.bytes(), &directory, name.bytes(), AtFlags::empty()))?;
        self.made(parent, name)
    }

    pub(super) fn open_directory(&self, node: u64) -> Outcome {
        self.handles().has_room()?;
        let directory = root::open_directory(self.directory(node)?)?;
        let handle =
            self.handles().add(Handle::Directory(Arc::new(Mutex::new(directory))), Opened { node, flags: 0 })?;
        Ok(Reply::empty().opened(handle))
    }

    pub(super) fn read_directory(&self, node: u64, handle: u64, offset: u64, size: usize, plus: bool) -> Outcome {
        let Handle::Directory(directory) = self.handles().get(handle)? else { return Err(Errno::NOTDIR) };
        let directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
        root::expect_inside(&*directory)?;
        // A node and a handle that do not belong together would give entries the wrong places.
        if plus && self.identity_of(&*directory)? != self.nodes().identity(node)? {
            return Err(Errno::INVAL);
        }
        // Of directories, the position is a number of the host's file system, which may use all 64 bits.
        seek(&*directory, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(&*directory, &mut buffer);
        let mut part = Directory::new(size, plus);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !part.has_room(name.len()) {
                break;
            }
            let item = DirectoryEntry {
                inode: entry.ino(),
                next: entry.next_entry_cookie(),
                kind: kind_of(entry.file_type()),
                name,
            };
            // `.`, `..` and what is gone by now come without attributes.
            let found = if plus { Name::new(name).ok().and_then(|name| self.look_up(node, name).ok()) } else { None };
            part.add(&item, found.as_ref());
        }
        Ok(part.into_reply())
    }
}

/// Returns the type as in readdir(3): the upper bits of a mode.
fn kind_of(kind: FileType) -> u32 {
    let mode = kind.as_raw_mode() & libc::S_IFMT;
    mode >> 12
}
