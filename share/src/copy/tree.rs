//! Walks the tree of a share and makes that of its copy, one component at a time.

use super::{
    data,
    error::{CopyError, MAX_DEPTH},
};
use crate::{
    protocol::Name,
    root::{self, Identity, examine, kind},
    volume::{FILES, Limits},
};
use rustix::{
    fs::{
        AtFlags, Mode, OFlags, RawDir, ResolveFlags, Statx, linkat, mkdirat, openat2, readlinkat, symlinkat, utimensat,
    },
    io::Errno,
};
use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

/// A directory that is being copied.
struct Level {
    from: Arc<OwnedFd>,
    to: OwnedFd,
    stat: Statx,
    /// Names that are still to be copied.
    left: Vec<Vec<u8>>,
}

/// What was copied so far.
pub(super) struct Copying {
    limits: Limits,
    left: Limits,
    identities: Vec<[u64; 6]>,
    /// Where the copies of files with several names are.
    linked: HashMap<Identity, Vec<Vec<u8>>>,
    /// The path of the present directory, for messages and links.
    path: Vec<Vec<u8>>,
}

impl Copying {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, left: limits, identities: Vec::new(), linked: HashMap::new(), path: Vec::new() }
    }

    /// Returns which file of the copy is which of the source.
    pub(super) fn identities(&self) -> &[[u64; 6]] {
        &self.identities
    }

    /// Copies a share of one file.
    pub(super) fn shared_file(&mut self, from: OwnedFd, target: &OwnedFd, stat: &Statx) -> Result<(), CopyError> {
        self.file(&from, target, FILES.as_bytes(), stat)
    }

    /// Copies a share of a directory.
    pub(super) fn tree(&mut self, from: Arc<OwnedFd>, target: &OwnedFd, stat: &Statx) -> Result<(), CopyError> {
        let files = Self::directory(target, FILES.as_bytes())?;
        let top = files.try_clone().map_err(|_| Errno::MFILE)?;
        let left = self.names(&*from)?;
        let mut levels = vec![Level { from, to: files, stat: *stat, left }];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.left.pop() else {
                let Some(Level { from, to, stat, .. }) = levels.pop() else { break };
                let described = root::open_directory(&from).and_then(|from| data::describe(from, to, &stat));
                described.map_err(|errno| self.failed(b".", errno))?;
                self.path.pop();
                continue;
            };
            match self.entry(level, &top, &name) {
                Ok(None) => {}
                Ok(Some(below)) if levels.len() < MAX_DEPTH => {
                    self.path.push(name);
                    levels.push(below);
                }
                Ok(Some(_)) => return Err(CopyError::Depth),
                Err(CopyError::Target(errno)) => return Err(self.failed(&name, errno)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Copies what has a name in a directory. Returns the level below it if that is a directory.
    fn entry(&mut self, level: &Level, top: &OwnedFd, name: &[u8]) -> Result<Option<Level>, CopyError> {
        let Ok(checked) = Name::new(name) else { return Ok(None) };
        let found = match root::find(&*level.from, checked) {
            // The host removes files meanwhile. What is mounted in the share is not a part of it.
            Err(Errno::NOENT | Errno::XDEV) => return Ok(None),
            found => found?,
        };
        let stat = examine(&found)?;
        match kind(&stat) {
            libc::S_IFDIR => {
                let to = Self::directory(&level.to, name)?;
                self.note(&stat, &to)?;
                self.path.push(name.to_vec());
                let left = self.names(&found);
                self.path.pop();
                return Ok(Some(Level { from: Arc::new(found), to, stat, left: left? }));
            }
            libc::S_IFREG => {
                let identity = Identity::from(&stat);
                if stat.stx_nlink > 1
                    && let Some(path) = self.linked.get(&identity)
                {
                    return Self::link(top, path, &level.to, name).map(|()| None);
                }
                match root::open(&*level.from, name, OFlags::RDONLY, identity) {
                    // Replaced or removed since it was found.
                    Err(Errno::STALE | Errno::NOENT) => return Ok(None),
                    from => self.file(&from?, &level.to, name, &stat)?,
                }
                if stat.stx_nlink > 1 {
                    let path = self.path.iter().cloned().chain([name.to_vec()]).collect();
                    self.linked.insert(identity, path);
                }
            }
            libc::S_IFLNK => {
                let target = readlinkat(&found, c"", Vec::new())?;
                symlinkat(&target, &level.to, name)?;
                utimensat(&level.to, name, &data::times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
                let link = root::find(&level.to, checked)?;
                self.note(&stat, &link)?;
            }
            _ => {}
        }
        Ok(None)
    }

    fn file(&mut self, from: &OwnedFd, parent: &OwnedFd, name: &[u8], stat: &Statx) -> Result<(), CopyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = openat2(parent, name, flags, Mode::RUSR | Mode::WUSR, ResolveFlags::BENEATH)?;
        if !data::copy(from, &to, stat.stx_size, &mut self.left.bytes)? {
            return Err(CopyError::Bytes(self.limits.bytes));
        }
        data::describe(from, &to, stat)?;
        self.note(stat, &to)
    }

    /// Gives a file that was copied already another name.
    fn link(top: &OwnedFd, path: &[Vec<u8>], parent: &OwnedFd, name: &[u8]) -> Result<(), CopyError> {
        let Some((of, above)) = path.split_last() else { return Ok(()) };
        let mut directory = top.try_clone().map_err(|_| Errno::MFILE)?;
        for name in above {
            directory = root::open_below(&directory, name)?;
        }
        Ok(linkat(&directory, &of[..], parent, name, AtFlags::empty())?)
    }

    fn directory(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
        mkdirat(parent, name, Mode::RWXU)?;
        root::open_below(parent, name)
    }

    fn note(&mut self, of: &Statx, copy: impl AsFd) -> Result<(), CopyError> {
        let [old, new]: [[u64; 3]; 2] = [Identity::from(of).into(), Identity::from(&examine(copy)?).into()];
        self.identities.push([old[0], old[1], old[2], new[0], new[1], new[2]]);
        Ok(())
    }

    /// Returns the names in a directory, which count.
    fn names(&mut self, directory: impl AsFd) -> Result<Vec<Vec<u8>>, CopyError> {
        root::expect_inside(&directory)?;
        let directory = root::open_directory(directory)?;
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&directory, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                self.left.names = self.left.names.checked_sub(1).ok_or(CopyError::Names(self.limits.names))?;
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    fn failed(&self, name: &[u8], source: Errno) -> CopyError {
        let path: Vec<&[u8]> = self.path.iter().map(Vec::as_slice).chain([name]).collect();
        CopyError::File { path: String::from_utf8_lossy(&path.join(&b'/')).into_owned(), source }
    }
}
