//! The files that `COPY` takes: which ones exist, their hash, and a tar archive of them. Opens no
//! file outside of the directory, follows no symbolic link, and honours `.dockerignore`.

mod ignore;
mod select;

pub(crate) use ignore::path_matches;
pub use ignore::{Ignore, IgnoreError};
pub use select::{Selection, Target};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat, statat},
    io::Errno,
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Maximum number of files and directories of a context.
pub const MAX_ENTRIES: usize = 500_000;
/// Maximum size of all files of a context in bytes.
pub const MAX_BYTES: u64 = 64 << 30;
/// Maximum depth of directories.
const MAX_DEPTH: usize = 128;
/// Bytes that are read at a time.
const BUFFER: usize = 64 << 10;
/// Maximum size of `.dockerignore` in bytes.
const MAX_IGNORE: u64 = 1 << 20;

/// Why files of a context cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A file cannot be read.
    #[error("cannot read {path:?} of the context: {errno}")]
    File {
        /// Path in the context.
        path: String,
        /// The error of the kernel.
        errno: Errno,
    },
    /// A file has other content than when its key was made.
    #[error("{0:?} changed during the build")]
    Changed(String),
    /// A limit.
    #[error("the context has too many files: the maximum is 500000 entries, 64 GiB and 128 levels")]
    TooLarge,
    /// A path leaves the context.
    #[error("invalid source {0:?}: expected a path inside of the context")]
    Escapes(String),
    /// A pattern matches nothing.
    #[error("source {0:?} does not exist in the context, or .dockerignore excludes it")]
    Missing(String),
    /// Several sources need a directory.
    #[error("invalid target {0:?}: several sources need a directory, whose name ends with a slash")]
    NotADirectory(String),
    /// `.dockerignore` is malformed.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// The archive cannot be written.
    #[error("cannot write the archive: {0}")]
    Output(#[from] std::io::Error),
}

/// What a path of the context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link to this target.
    Symlink(Vec<u8>),
}

/// A file of the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its kind.
    pub kind: FileKind,
    /// The low twelve bits of its mode.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
}

/// A directory with the files of one build. A clone shares them. Each file has to have the content for
/// which its key was made, until the build ends.
#[derive(Debug, Clone)]
pub struct Context {
    root: Arc<OwnedFd>,
    /// By path, without a leading slash. The root itself is the empty path.
    files: Arc<BTreeMap<Vec<u8>, File>>,
    /// SHA-256 of the files that are part of a key.
    hashes: Arc<Mutex<BTreeMap<Vec<u8>, [u8; 32]>>>,
}

/// A context whose files are being listed.
struct Listing(BTreeMap<Vec<u8>, File>);

impl Context {
    /// Opens a directory and lists its files.
    ///
    /// # Errors
    /// Fails if a file cannot be read, if `.dockerignore` is malformed, or if a limit is exceeded.
    pub fn open(path: &Path) -> Result<Self, ContextError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fail = |errno| ContextError::File { path: path.display().to_string(), errno };
        let root = openat(CWD, path, flags, Mode::empty()).map_err(fail)?;
        let ignore = match open_file(root.as_fd(), b".dockerignore") {
            Ok(file) => {
                let mut text = String::new();
                let mut file = std::fs::File::from(file).take(MAX_IGNORE + 1);
                file.read_to_string(&mut text).map_err(ContextError::Output)?;
                Ignore::parse(&text)?
            }
            Err(Errno::NOENT) => Ignore::default(),
            Err(errno) => return Err(ContextError::File { path: ".dockerignore".into(), errno }),
        };
        let mode = fstat(&root).map_err(fail)?.st_mode & 0o7777;
        let mut listing = Listing(BTreeMap::new());
        listing.0.insert(Vec::new(), File { kind: FileKind::Directory, mode, size: 0 });
        let directory = openat(&root, ".", flags, Mode::empty()).map_err(fail)?;
        let mut bytes = 0;
        listing.walk(directory, b"", &ignore, &mut bytes, 0)?;
        listing.drop_excluded_directories(&ignore);
        Ok(Self { root: Arc::new(root), files: Arc::new(listing.0), hashes: Arc::default() })
    }

    /// Returns the files by path. The root is the empty path.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<Vec<u8>, File> {
        &self.files
    }

    fn known_hash(&self, path: &[u8]) -> Option<[u8; 32]> {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied()
    }

    /// Returns the hash of a file, which is that of its first reading.
    fn hash(&self, path: &[u8]) -> Result<[u8; 32], ContextError> {
        if let Some(known) = self.known_hash(path) {
            return Ok(known);
        }
        let (mut content, mut hash) = (self.read(path)?, Sha256::new());
        let mut buffer = vec![0; BUFFER];
        loop {
            match content.read(&mut buffer)? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        let hash = hash.finalize().into();
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_vec(), hash);
        Ok(hash)
    }

    /// Passes on the content of a file in pieces, and fails if it is not the one that was hashed.
    fn copy(
        &self,
        path: &[u8],
        file: &File,
        mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), ContextError> {
        let (mut content, mut hash, mut left) = (self.read(path)?.take(file.size), Sha256::new(), file.size);
        let mut buffer = vec![0; BUFFER];
        loop {
            match content.read(&mut buffer)? {
                0 => break,
                count => {
                    hash.update(&buffer[..count]);
                    write(&buffer[..count])?;
                    left -= count as u64;
                }
            }
        }
        let hash: [u8; 32] = hash.finalize().into();
        if left > 0 || self.known_hash(path).is_some_and(|known| known != hash) {
            return Err(ContextError::Changed(String::from_utf8_lossy(path).into()));
        }
        Ok(())
    }

    fn read(&self, path: &[u8]) -> Result<std::fs::File, ContextError> {
        let fail = |errno| ContextError::File { path: String::from_utf8_lossy(path).into(), errno };
        open_file(self.root.as_fd(), path).map(std::fs::File::from).map_err(fail)
    }
}

impl Listing {
    fn walk(
        &mut self,
        directory: OwnedFd,
        path: &[u8],
        ignore: &Ignore,
        bytes: &mut u64,
        depth: usize,
    ) -> Result<(), ContextError> {
        let fail = |path: &[u8], errno| ContextError::File { path: String::from_utf8_lossy(path).into(), errno };
        if depth > MAX_DEPTH {
            return Err(ContextError::TooLarge);
        }
        for entry in Dir::read_from(&directory).map_err(|errno| fail(path, errno))? {
            let name = entry.map_err(|errno| fail(path, errno))?;
            let name = name.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let inner = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            let about = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| fail(&inner, errno))?;
            let size = u64::try_from(about.st_size).unwrap_or(0);
            let is_excluded = ignore.excludes(&inner);
            let kind = match FileType::from_raw_mode(about.st_mode) {
                FileType::Directory => {
                    if is_excluded && !ignore.has_exceptions() {
                        continue;
                    }
                    FileKind::Directory
                }
                _ if is_excluded => continue,
                FileType::RegularFile => FileKind::File,
                FileType::Symlink => {
                    let target = readlinkat(&directory, name, Vec::new()).map_err(|errno| fail(&inner, errno))?;
                    FileKind::Symlink(target.into_bytes())
                }
                _ => continue,
            };
            if kind == FileKind::File {
                *bytes = bytes.saturating_add(size);
            }
            if self.0.len() >= MAX_ENTRIES || *bytes > MAX_BYTES {
                return Err(ContextError::TooLarge);
            }
            let is_directory = kind == FileKind::Directory;
            let size = if kind == FileKind::File { size } else { 0 };
            self.0.insert(inner.clone(), File { kind, mode: about.st_mode & 0o7777, size });
            if is_directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = openat(&directory, name, flags, Mode::empty()).map_err(|errno| fail(&inner, errno))?;
                self.walk(opened, &inner, ignore, bytes, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Removes excluded directories in which no exception kept a file.
    fn drop_excluded_directories(&mut self, ignore: &Ignore) {
        if !ignore.has_exceptions() {
            return;
        }
        let paths: Vec<_> =
            self.0.keys().rev().filter(|path| !path.is_empty() && ignore.excludes(path)).cloned().collect();
        for path in paths {
            let prefix = [&path[..], b"/"].concat();
            let has_content =
                self.0.range(prefix.clone()..).next().is_some_and(|(inner, _)| inner.starts_with(&prefix));
            if !has_content {
                self.0.remove(&path);
            }
        }
    }
}

/// Opens a regular file below `root` without following a link.
fn open_file(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, std::ffi::OsStr::from_bytes(path), flags, Mode::empty(), resolve)?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(Errno::INVAL),
    }
}
