//! Paths of clients: names of entries, each of which is looked up by itself. Symbolic links are not followed: a
//! sandbox made them, and where they lead to is a path of that sandbox.

use super::request::{Failure, Why};
use crate::{
    protocol::Name,
    root::{self, Root, examine, kind},
};
use rustix::{fs::Statx, io::Errno};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

/// Maximum length of a path in bytes, and number of its names.
const MAX_PATH: usize = 4096;
const MAX_NAMES: usize = 256;

/// A path in a volume, from its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumePath(Vec<Vec<u8>>);

/// A file that was found, by a descriptor that only names it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: Arc<OwnedFd>,
    pub(super) stat: Statx,
}

impl Found {
    /// Finds an entry of an open directory.
    pub(super) fn in_directory(directory: &OwnedFd, name: Name<'_>) -> Result<Self, Errno> {
        let file = Arc::new(root::find(directory, name)?);
        Ok(Self { stat: examine(&file)?, file })
    }
}

pub(super) fn failure(why: Why, message: impl Into<String>) -> Failure {
    Failure { why, message: message.into() }
}

impl VolumePath {
    pub(super) fn new(text: &str) -> Result<Self, Failure> {
        let invalid = |problem: &str| failure(Why::Invalid, format!("invalid path: {problem}"));
        if text.len() > MAX_PATH {
            return Err(invalid("it is longer than 4096 bytes"));
        }
        let names: Vec<&str> = text.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        if names.len() > MAX_NAMES {
            return Err(invalid("it has more than 256 names"));
        }
        for name in &names {
            // Also `..`: a path of a volume does not lead up.
            Name::new(name.as_bytes()).map_err(|_| invalid("a name is \"..\", over 255 bytes, or contains NUL"))?;
        }
        Ok(Self(names.into_iter().map(|name| name.as_bytes().to_vec()).collect()))
    }

    /// Returns the path of the directory, and the name in it. The root has none.
    pub(super) fn split(&self) -> Option<(Self, Name<'_>)> {
        let (name, above) = self.0.split_last()?;
        Some((Self(above.to_vec()), Name::new(name).ok()?))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = Name<'_>> {
        self.0.iter().filter_map(|name| Name::new(name).ok())
    }

    /// Returns the path as text: absolute, from the root of the volume.
    pub(super) fn text(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|name| String::from_utf8_lossy(name)).collect();
        format!("/{}", names.join("/"))
    }

    pub(super) fn name(&self) -> String {
        self.0.last().map_or_else(|| "/".to_owned(), |name| String::from_utf8_lossy(name).into_owned())
    }

    pub(super) fn joined(&self, name: &[u8]) -> Self {
        Self(self.0.iter().cloned().chain([name.to_vec()]).collect())
    }

    /// Finds the file.
    pub(super) fn find(&self, root: &Root) -> Result<Found, Failure> {
        let mut file = root.file();
        for name in self.names() {
            file = Arc::new(find_in(&*file, name).map_err(|errno| self.failed(errno))?);
        }
        let stat = examine(&file).map_err(|errno| self.failed(errno))?;
        Ok(Found { file, stat })
    }

    /// Finds the directory.
    pub(super) fn find_directory(&self, root: &Root) -> Result<Arc<OwnedFd>, Failure> {
        let Found { file, stat } = self.find(root)?;
        if kind(&stat) == libc::S_IFDIR { Ok(file) } else { Err(self.failed(Errno::NOTDIR)) }
    }

    /// Returns what a system error means for a client.
    pub(super) fn failed(&self, errno: Errno) -> Failure {
        let path = self.text();
        match errno {
            Errno::NOENT | Errno::STALE => failure(Why::NotFound, format!("path not found: {path}")),
            Errno::NOTDIR => failure(Why::Invalid, format!("path is not a directory: {path}")),
            Errno::ISDIR => failure(Why::Invalid, format!("path is a directory: {path}")),
            Errno::LOOP => failure(Why::Invalid, format!("path leads through a symbolic link: {path}")),
            Errno::EXIST => failure(Why::Exists, format!("path exists: {path}")),
            Errno::OPNOTSUPP => failure(Why::Invalid, format!("path is neither a file nor a directory: {path}")),
            Errno::NAMETOOLONG | Errno::INVAL => failure(Why::Invalid, format!("invalid path: {path}")),
            Errno::NOSPC | Errno::DQUOT => failure(Why::NoSpace, "not enough space in the volume"),
            errno => failure(Why::Internal, format!("cannot use {path}: {errno}")),
        }
    }
}

/// Finds an entry of what must be a directory. A link is distinguished from what is not there.
fn find_in(directory: impl AsFd, name: Name<'_>) -> Result<OwnedFd, Errno> {
    match kind(&examine(&directory)?) {
        libc::S_IFDIR => root::find(directory, name),
        libc::S_IFLNK => Err(Errno::LOOP),
        _ => Err(Errno::NOTDIR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_clients_stay_in_the_volume() {
        for (given, expected) in [("", "/"), ("/", "/"), ("a", "/a"), ("//a/./b/", "/a/b"), ("/...", "/...")] {
            assert_eq!(VolumePath::new(given).unwrap().text(), expected);
        }
        let (long, deep) = ("a".repeat(256), "a/".repeat(257));
        for bad in ["..", "/../etc", "a/../../b", "a\0b", &long, &deep, &"a/".repeat(3000)] {
            assert_eq!(VolumePath::new(bad).unwrap_err().why, Why::Invalid, "{bad:?}");
        }
    }
}
