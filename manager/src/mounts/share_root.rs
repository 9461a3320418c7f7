//! Opens a directory or file of the host that a sandbox shares. May not open anything in it.

use crate::home::layout::Home;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, open, readlinkat},
    io::Errno,
};
use std::{
    ffi::OsString,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

/// Why a directory or file of the host cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareRootError {
    /// It cannot be opened.
    #[error("cannot share {}: {source}", .path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: Errno,
    },
    /// It is neither a directory nor a regular file.
    #[error("cannot share {}: it is neither a directory nor a regular file", .0.display())]
    Kind(PathBuf),
    /// A sandbox that can write it controls the host.
    #[error("cannot share {}: it is the root of the host", .0.display())]
    Root(PathBuf),
    /// A sandbox that can write it controls every sandbox.
    #[error("cannot share {}: it contains the home of sandboxvm, {}, or lies in it", .path.display(), .home.display())]
    Home {
        /// The path.
        path: PathBuf,
        /// The home.
        home: PathBuf,
    },
}

/// An open directory or file. The descriptor only names it.
#[derive(Debug)]
pub(crate) struct ShareRoot {
    pub(crate) file: OwnedFd,
    pub(crate) is_directory: bool,
}

impl ShareRoot {
    /// Opens `path`, which is the user's: links in it are followed.
    pub(crate) fn open(home: &Home, path: &Path) -> Result<Self, ShareRootError> {
        let failed = |source| ShareRootError::Open { path: path.to_owned(), source };
        let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let kind = FileType::from_raw_mode(fstat(&file).map_err(failed)?.st_mode);
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            return Err(ShareRootError::Kind(path.to_owned()));
        }
        let real = path_of(&file).map_err(failed)?;
        if real == Path::new("/") {
            return Err(ShareRootError::Root(path.to_owned()));
        }
        let of_home = open(home.root(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).and_then(|home| path_of(&home));
        let of_home = of_home.map_err(failed)?;
        if of_home.starts_with(&real) || real.starts_with(&of_home) {
            return Err(ShareRootError::Home { path: path.to_owned(), home: home.root().to_owned() });
        }
        Ok(Self { file, is_directory: kind == FileType::Directory })
    }
}

fn path_of(file: &OwnedFd) -> Result<PathBuf, Errno> {
    let path = readlinkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn homes_roots_and_what_contains_them_are_refused_also_behind_links() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::open(&directory.path().join("state/home")).unwrap();
        let of = |path: &str| ShareRoot::open(&home, &directory.path().join(path));
        fs::create_dir(directory.path().join("data")).unwrap();
        fs::write(directory.path().join("file"), "x").unwrap();
        symlink(directory.path().join("state"), directory.path().join("link")).unwrap();
        symlink("/", directory.path().join("root")).unwrap();
        assert!(of("data").unwrap().is_directory);
        assert!(!of("file").unwrap().is_directory);
        for path in [".", "state", "state/home", "state/home/sandboxes", "link", "link/home/volumes", "data/../state"] {
            assert!(matches!(of(path), Err(ShareRootError::Home { .. })), "{path}");
        }
        assert!(matches!(of("root"), Err(ShareRootError::Root(_))));
        assert!(matches!(of("missing"), Err(ShareRootError::Open { .. })));
        assert!(matches!(ShareRoot::open(&home, Path::new("/dev/null")), Err(ShareRootError::Kind(_))));
    }
}
