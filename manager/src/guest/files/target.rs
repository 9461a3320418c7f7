//! The place on the host for a copy out of a sandbox, by docker's rules: into an existing
//! directory, or else in place of the path. The path comes from the user, and links in it are
//! followed. Below the path there may be files that a guest left there, so no link may be followed
//! there.

use super::CopyError;
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, FileType, Mode, OFlags, Stat, mkdirat, open, openat, stat, statat},
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// An open directory on the host, and what is to be replaced in it.
#[derive(Debug)]
pub struct HostTarget {
    pub(super) directory: OwnedFd,
    /// The file to be replaced in the directory. `None` for a tree, whose content goes into the
    /// directory itself.
    pub(super) name: Option<OsString>,
    /// True if the directory was created for this copy.
    pub(super) is_new: bool,
    path: PathBuf,
}

/// The source of a copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copied<'a> {
    /// Its name. `None` for a directory of which only the content is copied.
    pub(super) name: Option<&'a [u8]>,
    pub(super) is_directory: bool,
}

impl HostTarget {
    /// Returns the path of the copy.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn find(path: &Path, copied: Copied<'_>) -> Result<Self, CopyError> {
        let text = path.as_os_str().as_bytes();
        let must_be_directory = text.ends_with(b"/") || text.ends_with(b"/.");
        let about = match stat(path) {
            Ok(about) => Some(about),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(host("look at", path, errno)),
        };
        match (about.as_ref().map(kind), copied.is_directory) {
            (Some(FileType::Directory), is_directory) => {
                let directory = open_directory(path)?;
                match (is_directory, copied.name) {
                    (true, None) => Ok(Self::new(directory, None, path.to_owned())),
                    (true, Some(name)) => Self::directory_in(&directory, OsStr::from_bytes(name), path),
                    (false, name) => {
                        let name = OsStr::from_bytes(name.unwrap_or_default());
                        Self::file_in(directory, name, path.join(name))
                    }
                }
            }
            (Some(_), true) => Err(target(path, "a directory cannot take the place of a file; name another place")),
            (Some(_), false) if must_be_directory => Err(target(path, "is no directory; leave out the '/' at its end")),
            (None, false) if must_be_directory => Err(target(path, "there is no such directory; make it first")),
            (_, is_directory) => {
                let (above, name) = split(path)?;
                let directory = open_directory(above)?;
                if is_directory {
                    Self::directory_in(&directory, name, above)
                } else {
                    Self::file_in(directory, name, path.to_owned())
                }
            }
        }
    }

    /// Finds a place for a file, in place of a regular file or a link. Anything else is not
    /// replaced.
    fn file_in(directory: OwnedFd, name: &OsStr, path: PathBuf) -> Result<Self, CopyError> {
        match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|about| kind(&about)) {
            Ok(FileType::RegularFile) | Err(Errno::NOENT) => {}
            // A link to a device stands for the device: `-` is the way to write to one.
            Ok(FileType::Symlink) => match statat(&directory, name, AtFlags::empty()).map(|about| kind(&about)) {
                Ok(FileType::RegularFile | FileType::Directory) | Err(Errno::NOENT | Errno::LOOP | Errno::ACCESS) => {}
                _ => return Err(target(&path, "is a link to no regular file; '-' writes to standard output")),
            },
            Ok(FileType::Directory) => return Err(target(&path, "a file cannot take the place of a directory")),
            Ok(_) => return Err(target(&path, "is no regular file; '-' writes to standard output")),
            Err(errno) => return Err(host("look at", &path, errno)),
        }
        Ok(Self::new(directory, Some(name.to_owned()), path))
    }

    fn new(directory: OwnedFd, name: Option<OsString>, path: PathBuf) -> Self {
        Self { directory, name, is_new: false, path }
    }

    /// Opens a directory in another one, which is created or exists as a real directory.
    fn directory_in(above: &OwnedFd, name: &OsStr, above_path: &Path) -> Result<Self, CopyError> {
        let path = above_path.join(name);
        let is_new = match mkdirat(above, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(host("make the directory", &path, errno)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(above, name, flags, Mode::empty()) {
            Ok(directory) => Ok(Self { is_new, ..Self::new(directory, None, path) }),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(target(&path, "is no directory, or a symbolic link, which is not followed; remove it first"))
            }
            Err(errno) => Err(host("open", &path, errno)),
        }
    }
}

fn kind(about: &Stat) -> FileType {
    FileType::from_raw_mode(about.st_mode)
}

fn open_directory(path: &Path) -> Result<OwnedFd, CopyError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|errno| host("open the directory", path, errno))
}

fn split(path: &Path) -> Result<(&Path, &OsStr), CopyError> {
    match (path.parent(), path.file_name()) {
        (Some(above), Some(name)) => Ok((above, name)),
        _ => Err(target(path, "names no file or directory")),
    }
}

fn host(step: &'static str, path: &Path, errno: Errno) -> CopyError {
    CopyError::Host { step, path: path.to_owned(), error: errno.into() }
}

fn target(path: &Path, problem: &'static str) -> CopyError {
    CopyError::Target { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn copies_go_where_docker_puts_them() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink("dir", at("link")).unwrap();
        symlink("/etc/passwd", at("dir/planted")).unwrap();
        symlink("/etc", at("dir/tree")).unwrap();
        let file = Copied { name: Some(b"a"), is_directory: false };
        let tree = Copied { name: Some(b"tree"), is_directory: true };
        let content = Copied { name: None, is_directory: true };
        let found = |path: &str, copied| {
            HostTarget::find(&at(path), copied)
                .map(|found| (found.path.strip_prefix(home.path()).unwrap().to_owned(), found.is_new))
        };
        let is = |path: &str, is_new| (PathBuf::from(path), is_new);
        for (path, copied, expected) in [
            ("dir", file, is("dir/a", false)),
            ("link/", file, is("link/a", false)),
            ("file", file, is("file", false)),
            ("new", file, is("new", false)),
            ("dir/planted", file, is("dir/planted", false)),
            ("made", tree, is("made", true)),
            ("made/.", content, is("made/.", false)),
            ("made", tree, is("made/tree", true)),
            ("made", tree, is("made/tree", false)),
            ("slash/", tree, is("slash", true)),
            ("dir", content, is("dir", false)),
        ] {
            assert_eq!(found(path, copied).unwrap(), expected, "{path} {copied:?}");
        }
        for (path, copied, problem) in [
            ("file", tree, "place of a file"),
            ("file/", file, "Not a directory"),
            ("new/", file, "no such directory"),
            ("none/a", file, "No such file"),
            ("none/a", tree, "No such file"),
            ("dir", tree, "symbolic link"),
        ] {
            let error = found(path, copied).unwrap_err().to_string();
            assert!(error.contains(problem), "{path}: {error}");
        }
        assert!(HostTarget::find(Path::new("/dev/null"), file).unwrap_err().to_string().contains("'-'"));
        assert!(HostTarget::find(Path::new("/dev/stdout"), file).is_err());
    }
}
