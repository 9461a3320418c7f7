//! The staging directory in the project: new contents before they get their place, and old ones after
//! they lost it. Owns the names in it. It is on the file system of the project, so that every step is one
//! rename, and an undone file is the same file as before, with its owner and attributes.
//!
//! ```text
//! .sandboxvm-apply-<random>/new-N    to be moved to the path of step N; after an exchange, what was there
//! .sandboxvm-apply-<random>/old-N    what step N removed
//! ```

use super::plan::{Source, Step, merge_with_host};
use crate::{
    beneath::{About, Root, STAGING_PREFIX, look_at},
    index::{Content, Kind},
    review::{Review, layer::State},
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{
        AtFlags, Gid, Mode, OFlags, RenameFlags, Uid, chownat, fchmod, fchown, mkdirat, renameat_with, symlinkat,
        unlinkat,
    },
    io::Errno,
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read, Write},
};

/// The open directory.
#[derive(Debug)]
pub(super) struct Staging {
    directory: OwnedFd,
}

/// Returns a name for a new staging directory.
pub(super) fn new_name() -> io::Result<Vec<u8>> {
    let mut random = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().fold(STAGING_PREFIX.to_owned(), |name, byte| format!("{name}{byte:02x}")).into_bytes())
}

pub(super) fn new_file(step: usize) -> Vec<u8> {
    format!("new-{step}").into_bytes()
}

pub(super) fn old_file(step: usize) -> Vec<u8> {
    format!("old-{step}").into_bytes()
}

impl Staging {
    /// Makes the directory.
    pub(super) fn create(root: &Root, name: &[u8]) -> io::Result<Self> {
        mkdirat(root.directory(b"")?, name, Mode::RWXU)?;
        Ok(Self { directory: root.directory(name)? })
    }

    /// Opens the directory, if it is there.
    pub(super) fn open(root: &Root, name: &[u8]) -> io::Result<Option<Self>> {
        match root.directory(name) {
            Ok(directory) => Ok(Some(Self { directory })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Describes a file in it.
    pub(super) fn look(&self, name: &[u8]) -> Result<Option<About>, Errno> {
        match look_at(self.directory.as_fd(), name) {
            Ok(about) => Ok(Some(about)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Renames between the project and this directory.
    pub(super) fn take(&self, from: &OwnedFd, name: &[u8], to: &[u8], flags: RenameFlags) -> Result<(), Errno> {
        renameat_with(from, name, &self.directory, to, flags)
    }

    /// Renames from this directory to the project.
    pub(super) fn give(&self, name: &[u8], to: &OwnedFd, to_name: &[u8], flags: RenameFlags) -> Result<(), Errno> {
        renameat_with(&self.directory, name, to, to_name, flags)
    }

    /// Removes a file or an empty directory.
    pub(super) fn unlink(&self, name: &[u8]) -> Result<(), Errno> {
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => unlinkat(&self.directory, name, AtFlags::REMOVEDIR),
            Err(errno) => Err(errno),
        }
    }

    /// Writes what a step needs, and returns its inode number and content.
    pub(super) fn prepare(
        &self,
        number: usize,
        path: &[u8],
        step: &Step,
        review: &Review,
        root: &Root,
    ) -> io::Result<Option<(u64, State)>> {
        let (Step::Create { source, owner } | Step::Replace { source, owner, .. }) = step else { return Ok(None) };
        let name = new_file(number);
        let state = match source {
            Source::Sandbox(state @ State { kind: Kind::Directory, mode }) => {
                mkdirat(&self.directory, &name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&self.directory, &name, flags, Mode::empty())?;
                finish(&made, *mode, *owner)?;
                state.clone()
            }
            Source::Sandbox(state @ State { kind: Kind::Symlink(target), .. }) => {
                symlinkat(&target[..], &self.directory, &name)?;
                let (user, group) = ids(*owner);
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                allow_refused(chownat(&self.directory, &name, Some(user), Some(group), flags))?;
                state.clone()
            }
            Source::Sandbox(state @ State { kind: Kind::File(content), mode }) => {
                let mut file = self.file(&name)?;
                io::copy(&mut review.sources().content(content), &mut file)?;
                finish(file.as_fd(), *mode, *owner)?;
                state.clone()
            }
            Source::Merge { old, new, mode } => {
                let merged = merge_with_host(review, root, path, old, new)?;
                let merged = merged.ok_or_else(|| io::Error::other("the file changed since it was merged"))?;
                let mut file = self.file(&name)?;
                file.write_all(&merged)?;
                finish(file.as_fd(), *mode, *owner)?;
                let (size, digest) = (merged.len() as u64, Sha256::digest(&merged).into());
                State { kind: Kind::File(Content { size, digest, layer: u8::MAX, offset: 0 }), mode: *mode }
            }
        };
        Ok(self.look(&name)?.map(|about| (about.inode, state)))
    }

    fn file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Writes everything on the file system to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.directory)?)
    }

    /// Removes the files of `steps` steps, and the directory. Directories with files stay, and are an error.
    pub(super) fn remove(self, root: &Root, name: &[u8], steps: u64) -> io::Result<()> {
        for number in 0..usize::try_from(steps).unwrap_or(usize::MAX) {
            for file in [new_file(number), old_file(number)] {
                self.unlink(&file)?;
            }
        }
        Ok(unlinkat(root.directory(b"")?, name, AtFlags::REMOVEDIR)?)
    }
}

fn ids(owner: (u32, u32)) -> (Uid, Gid) {
    (Uid::from_raw(owner.0), Gid::from_raw(owner.1))
}

/// Sets the owner, if this process may, and then the mode.
fn finish(file: impl AsFd, mode: u32, owner: (u32, u32)) -> io::Result<()> {
    let (user, group) = ids(owner);
    allow_refused(fchown(file.as_fd(), Some(user), Some(group)))?;
    Ok(fchmod(file, Mode::from_raw_mode(mode & 0o1777))?)
}

/// Without privileges files belong to the caller.
fn allow_refused(changed: Result<(), Errno>) -> io::Result<()> {
    match changed {
        Err(Errno::PERM) => Ok(()),
        changed => Ok(changed?),
    }
}
