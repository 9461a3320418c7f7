//! Answers requests: one answer for each, from any number of threads. What a request is about is in one
//! module each; this one has what they share.

mod content;
mod directories;
mod metadata;
mod saving;
mod volume;
mod xattrs;

use crate::{
    copy::Copied,
    handles::Handles,
    limits::Limits,
    nodes::{Nodes, Place, ROOT},
    protocol::{Attributes, Entry, Name, Operation, Refusal, Reply, constants, error, parse},
    root::{self, Identity, PERMISSIONS, Root, kind},
    volume::Volume,
};
use rustix::{
    fs::{FallocateFlags, OFlags, Statx, StatxTimestamp},
    io::Errno,
    process::{getegid, geteuid},
    rand::{GetRandomFlags, getrandom},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// User and group, in the guest, of files that belong to others on the host.
const NOBODY: u32 = 65_534;

/// To whom files belong in the guest that belong to this process's user on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User ID in the guest.
    pub uid: u32,
    /// Group ID in the guest.
    pub gid: u32,
}

/// How a share is served.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Refuse all changes.
    pub read_only: bool,
    /// The owner of files in the guest.
    pub owner: Owner,
}

/// The server of one share.
#[derive(Debug)]
pub struct Server {
    root: Root,
    settings: Settings,
    volume: Option<Volume>,
    copied: Option<Copied>,
    host: Owner,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
}

type Outcome = Result<Reply, Errno>;

impl Server {
    /// Serves `root`.
    #[must_use]
    pub fn new(root: Root, settings: Settings) -> Self {
        Self::with_limits(root, settings, Limits::of_process())
    }

    /// Serves `root`, the files of a volume.
    #[must_use]
    pub fn of_volume(root: Root, volume: Volume) -> Self {
        let settings = Settings { read_only: false, owner: Owner { uid: 0, gid: 0 } };
        Self { volume: Some(volume), ..Self::new(root, settings) }
    }

    /// Serves `root`, the files of a copy.
    #[must_use]
    pub fn of_copy(root: Root, owner: Owner, copied: Copied) -> Self {
        Self { copied: Some(copied), ..Self::new(root, Settings { read_only: false, owner }) }
    }

    fn with_limits(root: Root, settings: Settings, limits: Limits) -> Self {
        // Above all small numbers, and different from those of a process before this one.
        let first = || u64::from(random() | 1 << 31) << 32;
        let nodes = Mutex::new(Nodes::new(&root, first(), limits));
        let handles = Mutex::new(Handles::new(first(), limits.handles));
        let host = Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        Self { root, settings, volume: None, copied: None, host, nodes, handles }
    }

    /// Answers a request, which has its complete head. Returns none if it has no answer.
    #[must_use]
    pub fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        let (header, operation) = parse(request)?;
        let operation = match operation {
            Ok(operation) => operation,
            Err(refusal) => return Some(error(header.unique, refusal.into())),
        };
        match operation {
            Operation::Forget { count } => {
                self.nodes().forget(header.node, count);
                return None;
            }
            Operation::BatchForget(pairs) => {
                let mut nodes = self.nodes();
                for pair in pairs.chunks_exact(16) {
                    if let (Some(node), Some(count)) = (pair.first_chunk::<8>(), pair.last_chunk::<8>()) {
                        nodes.forget(u64::from_le_bytes(*node), u64::from_le_bytes(*count));
                    }
                }
                return None;
            }
            // Each operation is short, so it is not interrupted.
            Operation::Interrupt => return None,
            _ => {}
        }
        let caller = Owner { uid: header.uid, gid: header.gid };
        Some(match self.carry_out(header.node, caller, operation) {
            Ok(reply) => reply.finish(header.unique, 0),
            Err(errno) => error(header.unique, errno),
        })
    }

    fn carry_out(&self, node: u64, caller: Owner, operation: Operation<'_>) -> Outcome {
        use Operation as O;
        if self.settings.read_only && changes(&operation) {
            return Err(Errno::ROFS);
        }
        let _room = match (&self.copied, space(&operation)) {
            (Some(copied), Some(bytes)) => Some(copied.take_room(self.root.file(), bytes)?),
            _ => None,
        };
        match operation {
            O::Init { major, minor, max_readahead, features } => init(major, minor, max_readahead, features),
            O::Destroy | O::Flush => Ok(Reply::empty()),
            O::Lookup(name) => self.look_up(node, name).map(|entry| Reply::entry(&entry)),
            O::GetAttributes { handle } => self.attributes(node, handle),
            O::SetAttributes { handle, mode, uid, gid, size, times } => {
                if self.is_volume() {
                    self.set_ownership(node, (uid, gid, mode.map(without_privileges).transpose()?))?;
                } else {
                    self.set_owner(uid, gid)?;
                    if let Some(mode) = mode {
                        self.set_mode(node, handle, mode)?;
                    }
                }
                if let Some(size) = size {
                    self.set_size(node, handle, size)?;
                }
                if let Some(times) = times {
                    self.set_times(node, handle, times)?;
                }
                self.attributes(node, handle)
            }
            O::ReadLink => self.read_link(node),
            O::Symlink { name, target } => self.symlink(node, name, target),
            O::MakeNode { name, mode } => self.make_node(node, name, mode, caller),
            O::MakeDirectory { name, mode } => self.make_directory(node, name, mode, caller),
            O::Unlink(name) => self.unlink(node, name, false),
            O::RemoveDirectory(name) => self.unlink(node, name, true),
            O::Rename { from, parent, to, flags } => self.rename((node, from), (parent, to), flags),
            O::Link { of, name } => self.link(of, node, name),
            O::Open { flags } => self.open(node, flags),
            O::Create { name, flags, mode } => self.create(node, name, flags, mode, caller),
            O::Read { handle, offset, size } => self.read(handle, offset, size),
            O::Write { handle, offset, data } => self.write(handle, offset, data),
            O::Release { handle } => {
                let file = if self.is_volume() { self.handles().file(handle).ok() } else { None };
                let inode = file.and_then(|file| root::examine(file).ok()).map(|stat| stat.stx_ino);
                self.handles().remove(handle);
                if let Some(inode) = inode {
                    self.closed(inode);
                }
                Ok(Reply::empty())
            }
            O::Sync { handle, only_data } => self.sync(handle, only_data),
            O::StatFs => self.room(),
            O::OpenDirectory => self.open_directory(node),
            O::ReadDirectory { handle, offset, size, plus } => self.read_directory(node, handle, offset, size, plus),
            O::GetXattr { name, size } => self.xattr(node, name, size),
            O::SetXattr { name, value, flags } => self.set_xattr(node, name, value, flags),
            O::ListXattrs { size } => self.xattrs(node, size),
            O::RemoveXattr { name } => self.remove_xattr(node, name),
            O::Access { mask } => self.access(node, mask),
            O::Allocate { handle, offset, length, mode } => self.allocate(handle, offset, length, mode),
            O::Seek { handle, offset, whence } => self.seek(handle, offset, whence),
            // A volume has no copies, and a file that is opened again would not count as one in use.
            O::Save(_) | O::Restore(_) if self.is_volume() => Err(Errno::OPNOTSUPP),
            O::Save(cursor) => Ok(self.save(cursor)),
            O::Restore(part) => self.restore(part),
            // Answered before.
            O::Forget { .. } | O::BatchForget(_) | O::Interrupt => Err(Errno::INVAL),
        }
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the directory of a request, which must be in the root.
    fn directory(&self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        let directory = self.nodes().file(node)?;
        root::expect_inside(&*directory)?;
        Ok(directory)
    }

    /// Returns where a node is, whose directory must be in the root.
    fn place(&self, node: u64) -> Result<Place, Errno> {
        let place = self.nodes().place(node)?;
        root::expect_inside(&*place.parent)?;
        Ok(place)
    }

    fn look_up(&self, parent: u64, name: Name<'_>) -> Result<Entry, Errno> {
        let directory = self.directory(parent)?;
        let file = root::find(&directory, name)?;
        let stat = root::examine(&file)?;
        let node = self.nodes().found(parent, name, file, &stat)?;
        let open = || root::open(&directory, name.bytes(), OFlags::RDONLY, Identity::from(&stat));
        Ok(Entry { node, attributes: self.shown(&stat, open) })
    }

    /// Looks up a file that the guest has just made, which must be this one.
    fn made(&self, parent: u64, name: Name<'_>) -> Outcome {
        self.look_up(parent, name).map(|entry| Reply::entry(&entry))
    }

    /// Opens the file of a node for data or metadata.
    fn reopen(&self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        if node == ROOT {
            let stat = root::examine(self.root.file())?;
            return if kind(&stat) == libc::S_IFDIR {
                root::open_directory(self.root.file())
            } else {
                self.root.reopen(flags)
            };
        }
        let place = self.place(node)?;
        root::open(&place.parent, &place.name, flags, place.identity).map_err(stale_if_gone)
    }

    /// Returns attributes as the guest sees them.
    fn seen(&self, stat: &Statx) -> Attributes {
        let id = |host: u32, own: u32, guest: u32| if host == own { guest } else { NOBODY };
        let time = |time: StatxTimestamp| (time.tv_sec.cast_unsigned(), time.tv_nsec);
        Attributes {
            inode: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            times: [stat.stx_atime, stat.stx_mtime, stat.stx_ctime].map(time),
            mode: u32::from(stat.stx_mode) & (libc::S_IFMT | PERMISSIONS),
            links: stat.stx_nlink,
            uid: id(stat.stx_uid, self.host.uid, self.settings.owner.uid),
            gid: id(stat.stx_gid, self.host.gid, self.settings.owner.gid),
            block_size: stat.stx_blksize,
        }
    }

    fn identity_of(&self, file: impl AsFd) -> Result<Identity, Errno> {
        Ok(Identity::from(&root::examine(file)?))
    }
}

/// Returns permissions, unless there are set-user-ID and set-group-ID bits among them.
fn without_privileges(mode: u32) -> Result<u32, Errno> {
    if mode & (libc::S_ISUID | libc::S_ISGID) == 0 { Ok(mode & PERMISSIONS) } else { Err(Errno::PERM) }
}

/// A node whose name is gone is stale: the guest's kernel looks the name up again then.
fn stale_if_gone(errno: Errno) -> Errno {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Errno::STALE,
        errno => errno,
    }
}

fn changes(operation: &Operation<'_>) -> bool {
    use Operation as O;
    match operation {
        O::SetAttributes { .. }
        | O::Symlink { .. }
        | O::MakeNode { .. }
        | O::MakeDirectory { .. }
        | O::Unlink(_)
        | O::RemoveDirectory(_)
        | O::Rename { .. }
        | O::Link { .. }
        | O::Create { .. }
        | O::Write { .. }
        | O::SetXattr { .. }
        | O::RemoveXattr { .. }
        | O::Allocate { .. } => true,
        O::Open { flags } => !OFlags::from_bits_retain(*flags).intersection(OFlags::RWMODE | OFlags::TRUNC).is_empty(),
        O::Access { mask } => mask & libc::W_OK.unsigned_abs() != 0,
        _ => false,
    }
}

/// Returns how many bytes of the file system an operation can take, besides its metadata. None, if it takes nothing.
fn space(operation: &Operation<'_>) -> Option<u64> {
    use Operation as O;
    match operation {
        O::Write { data, .. } => Some(data.len() as u64),
        O::Allocate { mode, .. } if FallocateFlags::from_bits_retain(*mode).contains(FallocateFlags::PUNCH_HOLE) => {
            Some(0)
        }
        O::Allocate { length, .. } => Some(*length),
        O::Open { .. }
        | O::Unlink(_)
        | O::RemoveDirectory(_)
        | O::RemoveXattr { .. }
        | O::SetAttributes { .. }
        | O::Access { .. } => None,
        other => changes(other).then_some(0),
    }
}

fn init(major: u32, minor: u32, max_readahead: u32, features: u32) -> Outcome {
    if major != constants::MAJOR || minor < constants::OLDEST_MINOR {
        return Err(Refusal::Unsupported.into());
    }
    Ok(Reply::init(minor.min(constants::MINOR), max_readahead, features))
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Before the host's generator is ready, at its boot, a number would be less random, which is harmless.
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_beyond_the_limit_are_refused_until_others_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        for file in 0..9 {
            std::fs::write(directory.path().join(file.to_string()), "").unwrap();
        }
        let settings = Settings { read_only: false, owner: Owner { uid: 0, gid: 0 } };
        let limits = Limits { nodes: 8, open_nodes: 4, handles: 4 };
        let server = Server::with_limits(Root::open(directory.path()).unwrap(), settings, limits);
        let look_up = |file: usize| server.look_up(ROOT, Name::new(file.to_string().as_bytes()).unwrap());
        let nodes: Vec<u64> = (0..8).map(|file| look_up(file).unwrap().node).collect();
        assert_eq!(look_up(8).map(|entry| entry.node), Err(Errno::NFILE));
        // A file that the guest already refers to needs no new number.
        assert_eq!(look_up(3).map(|entry| entry.node), Ok(nodes[3]));
        server.nodes().forget(nodes[0], 1);
        assert!(look_up(8).is_ok());
        assert_eq!(look_up(0).map(|entry| entry.node), Err(Errno::NFILE));
    }
}
