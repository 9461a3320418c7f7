//! Opens a directory or file of the host that a sandbox shares. May not open anything in it.

use super::spec::Share;
use crate::{home::layout::Home, shared_volumes::SharedVolumeId};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2, readlinkat},
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
    /// A user who can put a link in the path would choose what is shared.
    #[error("cannot share {}: there is a symbolic link in its path", .0.display())]
    Link(PathBuf),
    /// It is neither a directory nor a regular file.
    #[error("cannot share {}: it is neither a directory nor a regular file", .0.display())]
    Kind(PathBuf),
    /// A sandbox that can write it controls the host.
    #[error("cannot share {}: it is the root of the host", .0.display())]
    Root(PathBuf),
    /// It is not a volume of this home.
    #[error("cannot share {}: it is not a volume of the server", .0.display())]
    Volume(PathBuf),
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
    /// Opens what of the host a sandbox shares.
    pub(crate) fn of_host(home: &Home, share: &Share<'_>) -> Result<Self, ShareRootError> {
        match share.limits {
            None => Self::open(home, share.path),
            Some(_) => Self::open_volume(home, share.path),
        }
    }

    /// Opens a volume of the server, the only directories of a home that a sandbox may write.
    fn open_volume(home: &Home, path: &Path) -> Result<Self, ShareRootError> {
        let id = path.file_name().and_then(|name| SharedVolumeId::try_from(name.to_str()?.to_owned()).ok());
        if id.is_none_or(|id| home.shared_volume(&id) != path) {
            return Err(ShareRootError::Volume(path.to_owned()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        let file = file.map_err(|source| ShareRootError::Open { path: path.to_owned(), source })?;
        Ok(Self { file, is_directory: true })
    }

    /// Opens `path`, in which no link is followed: it is opened again at each start, and others than the user of
    /// the sandbox may be able to make a link since its creation.
    pub(crate) fn open(home: &Home, path: &Path) -> Result<Self, ShareRootError> {
        let failed = |source| ShareRootError::Open { path: path.to_owned(), source };
        let (flags, resolve) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS);
        let file = openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|errno| match errno {
            Errno::LOOP => ShareRootError::Link(path.to_owned()),
            errno => failed(errno),
        })?;
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
    fn homes_roots_and_what_contains_them_are_refused() {
        let directory = tempfile::tempdir_in(std::env::temp_dir().canonicalize().unwrap()).unwrap();
        let home = Home::open(&directory.path().join("state/home")).unwrap();
        let of = |path: &str| ShareRoot::open(&home, &directory.path().join(path));
        fs::create_dir(directory.path().join("data")).unwrap();
        fs::write(directory.path().join("file"), "x").unwrap();
        assert!(of("data").unwrap().is_directory);
        assert!(!of("file").unwrap().is_directory);
        for path in [".", "state", "state/home", "state/home/sandboxes", "data/../state"] {
            assert!(matches!(of(path), Err(ShareRootError::Home { .. })), "{path}");
        }
        assert!(matches!(of("/"), Err(ShareRootError::Root(_))));
        assert!(matches!(of("missing"), Err(ShareRootError::Open { .. })));
        assert!(matches!(ShareRoot::open(&home, Path::new("/dev/null")), Err(ShareRootError::Kind(_))));
    }

    #[test]
    fn volumes_of_the_server_are_the_only_directories_of_a_home_that_can_be_shared() {
        let directory = tempfile::tempdir_in(std::env::temp_dir().canonicalize().unwrap()).unwrap();
        let home = Home::open(&directory.path().join("home")).unwrap();
        let volume = home.root().join("server/volumes/abcdefgh");
        fs::create_dir_all(&volume).unwrap();
        assert!(ShareRoot::open_volume(&home, &volume).unwrap().is_directory);
        assert!(ShareRoot::open(&home, &volume).is_err());
        symlink("/etc", home.root().join("server/volumes/symbolic")).unwrap();
        for path in ["..", ".", "abcdefgh/files", "../../sandboxes", "abcdefgh/../../../sandboxes/abcdefgh"] {
            let path = home.root().join("server/volumes").join(path);
            assert!(matches!(ShareRoot::open_volume(&home, &path), Err(ShareRootError::Volume(_))), "{path:?}");
        }
        let link = home.root().join("server/volumes/symbolic");
        assert!(matches!(ShareRoot::open_volume(&home, &link), Err(ShareRootError::Open { .. })));
        assert!(ShareRoot::open_volume(&home, Path::new("/etc/abcdefgh")).is_err());
    }

    /// Root shares a directory of a user, who puts a link in its place before it is opened again.
    #[test]
    fn links_that_take_the_place_of_a_directory_are_not_followed() {
        let directory = tempfile::tempdir_in(std::env::temp_dir().canonicalize().unwrap()).unwrap();
        let home = Home::open(&directory.path().join("home")).unwrap();
        let shared = directory.path().join("user/shared");
        fs::create_dir_all(shared.join("below")).unwrap();
        assert!(ShareRoot::open(&home, &shared).is_ok());
        fs::rename(&shared, directory.path().join("user/moved")).unwrap();
        symlink("/etc", &shared).unwrap();
        // The attack works on an open(2) without flags.
        assert!(open(&shared, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).is_ok());
        assert!(matches!(ShareRoot::open(&home, &shared), Err(ShareRootError::Link(_))));
        assert!(matches!(ShareRoot::open(&home, &shared.join("ssl")), Err(ShareRootError::Link(_))));
    }
}
