//! Changes of a volume by a client: directories, owners, removal. Each of them counts.

use super::{
    entry,
    path::{Found, VolumePath, failure},
    request::{Failure, SetOwner, Why},
};
use crate::{
    protocol::Name,
    root::{self, PERMISSIONS, Root, examine, kind},
    volume::{Volume, ownership::Ownership},
};
use rustix::{
    fs::{AtFlags, Mode, RawDir, RenameFlags, mkdirat, renameat_with, unlinkat},
    io::Errno,
};
use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

/// Depth up to which directories are removed where they are. Deeper ones are moved up first.
const MAX_DEPTH: usize = 256;

impl SetOwner {
    /// Rejects permissions that no file of a volume has.
    pub(super) fn check(self) -> Result<Self, Failure> {
        match self.mode {
            Some(mode) if mode & !PERMISSIONS != 0 => Err(failure(
                Why::Invalid,
                format!("invalid mode {mode:o}: must be permission bits without setuid and setgid"),
            )),
            _ => Ok(self),
        }
    }

    /// Returns what is stated, over what there is.
    pub(super) fn over(self, own: Ownership) -> Ownership {
        Ownership {
            uid: self.uid.unwrap_or(own.uid),
            gid: self.gid.unwrap_or(own.gid),
            mode: self.mode.unwrap_or(own.mode),
        }
    }
}

/// Makes a directory. Returns false if there is one.
fn make_in(volume: &Volume, parent: impl AsFd, name: Name<'_>, owner: Ownership) -> Result<bool, Errno> {
    match volume.quota.adding(|| mkdirat(&parent, name.bytes(), Mode::RWXU)) {
        Err(Errno::EXIST) => Ok(false),
        made => {
            made?;
            owner.set(root::open_below(&parent, name.bytes())?)?;
            Ok(true)
        }
    }
}

const USUAL: Ownership = Ownership { uid: 0, gid: 0, mode: 0o755 };

/// Makes the missing directories of a path.
pub(super) fn make_all(volume: &Volume, root: &Root, path: &VolumePath) -> Result<Arc<OwnedFd>, Failure> {
    let mut directory = root.file();
    for name in path.names() {
        let failed = |errno| path.failed(errno);
        let next = match root::find(&*directory, name) {
            Err(Errno::NOENT) => {
                make_in(volume, &*directory, name, USUAL).map_err(failed)?;
                root::find(&*directory, name).map_err(failed)?
            }
            found => found.map_err(failed)?,
        };
        match kind(&examine(&next).map_err(failed)?) {
            libc::S_IFDIR => directory = Arc::new(next),
            libc::S_IFLNK => return Err(failed(Errno::LOOP)),
            _ => return Err(failed(Errno::NOTDIR)),
        }
    }
    Ok(directory)
}

/// Makes a directory.
pub(super) fn make_directory(
    volume: &Volume,
    root: &Root,
    path: &VolumePath,
    owner: SetOwner,
    force: bool,
) -> Result<(), Failure> {
    let Some((above, name)) = path.split() else {
        return if force { Ok(()) } else { Err(path.failed(Errno::EXIST)) };
    };
    let parent = if force { make_all(volume, root, &above)? } else { above.find_directory(root)? };
    let is_new = make_in(volume, &*parent, name, owner.over(USUAL)).map_err(|errno| path.failed(errno))?;
    if is_new {
        return Ok(());
    }
    let found = path.find(root)?;
    if force && kind(&found.stat) == libc::S_IFDIR { Ok(()) } else { Err(path.failed(Errno::EXIST)) }
}

/// Sets owner and permissions.
pub(super) fn set_owner(root: &Root, path: &VolumePath, found: &Found, owner: SetOwner) -> Result<(), Failure> {
    if kind(&found.stat) == libc::S_IFLNK {
        return Err(failure(Why::Invalid, format!("a symbolic link has no owner and mode: {}", path.text())));
    }
    let file = entry::open(root, path, found).map_err(|errno| path.failed(errno))?;
    let own = Ownership::of(&file, u32::from(found.stat.stx_mode));
    owner.over(own).set(file).map_err(|errno| path.failed(errno))
}

/// Removes a file, or a directory with everything in it.
pub(super) fn remove(volume: &Volume, root: &Root, path: &VolumePath) -> Result<(), Failure> {
    let Some((above, name)) = path.split() else {
        return Err(failure(Why::Invalid, "the root of a volume cannot be removed"));
    };
    let parent = above.find_directory(root)?;
    let failed = |errno| path.failed(errno);
    let found = root::find(&*parent, name).map_err(failed)?;
    if kind(&examine(&found).map_err(failed)?) == libc::S_IFDIR {
        empty_counted(volume, root::open_below(&*parent, name.bytes()).map_err(failed)?).map_err(failed)?;
        unlink(volume, &*parent, name.bytes(), AtFlags::REMOVEDIR).map_err(failed)
    } else {
        unlink(volume, &*parent, name.bytes(), AtFlags::empty()).map_err(failed)
    }
}

/// Removes everything in the directory of a volume that was removed, also what no volume contains. Nothing counts
/// there any more.
pub(super) fn clear(volume: OwnedFd) -> Result<(), Errno> {
    empty(volume, u64::MAX, &|parent, name, flags| unlinkat(parent, name, flags))
}

fn unlink(volume: &Volume, parent: impl AsFd, name: &[u8], flags: AtFlags) -> Result<(), Errno> {
    volume.quota.removing(&parent, name, || unlinkat(&parent, name, flags))
}

/// Removes everything in a directory of a volume.
fn empty_counted(volume: &Volume, top: OwnedFd) -> Result<(), Errno> {
    // Each name is looked at a few times.
    let names = volume.quota.limits().names.max(volume.quota.usage()?.names);
    let left = names.saturating_mul(16).saturating_add(1024);
    empty(top, left, &|parent, name, flags| unlink(volume, parent, name, flags))
}

/// Removes everything in a directory, each name by `unlink`. Fails after `left` steps, because a sandbox fills it
/// meanwhile.
fn empty(
    top: OwnedFd,
    mut left: u64,
    unlink: &impl Fn(&OwnedFd, &[u8], AtFlags) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut above: Vec<(OwnedFd, Vec<u8>)> = Vec::new();
    let mut at = top;
    let mut moved = 0_u64;
    loop {
        left = left.checked_sub(1).ok_or(Errno::BUSY)?;
        match first_directory(&at, &mut left, unlink)? {
            Some(name) if above.len() < MAX_DEPTH => {
                let next = root::open_below(&at, &name)?;
                above.push((std::mem::replace(&mut at, next), name));
            }
            Some(name) => {
                // The directory at the top is above all others here.
                let to = &above[0].0;
                loop {
                    moved += 1;
                    match renameat_with(&at, &name, to, format!("removed-{moved}"), RenameFlags::NOREPLACE) {
                        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {
                            left = left.checked_sub(1).ok_or(Errno::BUSY)?
                        }
                        renamed => break renamed?,
                    }
                }
            }
            None => match above.pop() {
                Some((directory, name)) => {
                    at = directory;
                    match unlink(&at, &name, AtFlags::REMOVEDIR) {
                        // A sandbox has put something into it: it is found again.
                        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => {}
                        removed => removed?,
                    }
                }
                None => return Ok(()),
            },
        }
    }
}

/// Removes everything but directories from a directory, and returns the first of these.
fn first_directory(
    directory: &OwnedFd,
    left: &mut u64,
    unlink: &impl Fn(&OwnedFd, &[u8], AtFlags) -> Result<(), Errno>,
) -> Result<Option<Vec<u8>>, Errno> {
    let directory = root::open_below(directory, b".")?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Ok(name) = Name::new(entry.file_name().to_bytes()) else { continue };
        *left = left.checked_sub(1).ok_or(Errno::BUSY)?;
        match root::describe(&directory, name) {
            Ok(stat) if kind(&stat) == libc::S_IFDIR => return Ok(Some(name.bytes().to_vec())),
            Ok(_) => match unlink(&directory, name.bytes(), AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                removed => removed?,
            },
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}
