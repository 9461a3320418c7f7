//! What the host has at a path now. Owns the comparison of the project with what the sandbox was given;
//! it only reads, below the root.

use crate::{
    beneath::{About, Root, look_at, split},
    copy_in::digest,
    index::{Content, Kind},
    review::{compare::folded, layer::State},
};
use rustix::{
    fd::AsFd,
    fs::{FileType, readlinkat},
    io::Errno,
};
use std::collections::HashMap;

/// A file of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFile {
    pub(crate) state: State,
    pub(crate) owner: (u32, u32),
    /// Device and inode.
    pub(crate) identity: (u64, u64),
    pub(crate) links: u32,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    File(HostFile),
    /// A device, socket or pipe, or a mount point.
    Special,
    /// A directory of the path is a symbolic link, another file or a mount point.
    Blocked,
}

/// Looks at a path, and reads a file for its digest. The content of the state lies nowhere.
pub(crate) fn look(root: &Root, path: &[u8]) -> Result<Found, Errno> {
    let (above, name) = split(path);
    let directory = match root.directory(above) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(Found::Blocked),
        Err(errno) => return Err(errno),
    };
    let about = match look_at(directory.as_fd(), name) {
        Ok(about) => about,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(errno) => return Err(errno),
    };
    let kind = match about.kind {
        _ if about.is_mount => return Ok(Found::Special),
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink(readlinkat(&directory, name, Vec::new())?.into_bytes()),
        FileType::RegularFile => match digest(root, path)? {
            Some((digest, size)) => Kind::File(Content { size, digest, layer: u8::MAX, offset: 0 }),
            None => return Ok(Found::Special),
        },
        _ => return Ok(Found::Special),
    };
    let state = State { mode: mode(&kind, &about), kind };
    let identity = (about.device, about.inode);
    Ok(Found::File(HostFile { state, owner: about.owner, identity, links: about.links }))
}

fn mode(kind: &Kind, about: &About) -> u32 {
    match kind {
        Kind::Symlink(_) => 0o777,
        Kind::File(_) => about.mode & 0o777,
        Kind::Directory => about.mode & 0o1777,
    }
}

/// Names under which files of the host were found, by device and inode.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<(u64, u64), Vec<u8>>);

impl Names {
    /// Returns true if a file was found before under another name that differs only by case: the file system
    /// takes both for one.
    pub(crate) fn is_other(&mut self, path: &[u8], file: &HostFile) -> bool {
        if file.links > 1 && file.state.kind != Kind::Directory {
            return false;
        }
        let other = self.0.insert(file.identity, path.to_vec());
        other.is_some_and(|other| other != path && folded(&other) == folded(path))
    }
}

/// Returns the owner of the nearest directory above a path that exists.
pub(crate) fn owner_above(root: &Root, path: &[u8]) -> Result<(u32, u32), Errno> {
    let mut above = split(path).0;
    loop {
        match root.directory(above) {
            Ok(directory) => return Ok(look_at(directory.as_fd(), b"")?.owner),
            Err(_) if !above.is_empty() => above = split(above).0,
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_file_that_differ_only_by_case_are_found() {
        let file = |inode, links, kind| HostFile {
            state: State { kind, mode: 0o644 },
            owner: (0, 0),
            identity: (1, inode),
            links,
        };
        let link = || Kind::Symlink(b"x".to_vec());
        let mut names = Names::default();
        assert!(!names.is_other(b"a/Readme", &file(1, 1, link())));
        assert!(names.is_other(b"A/README", &file(1, 1, link())));
        assert!(!names.is_other(b"a/readme", &file(2, 1, link())));
        assert!(!names.is_other(b"other", &file(2, 1, link())), "a moved file");
        for name in [b"hard", b"HARD"] {
            assert!(!names.is_other(name, &file(3, 2, link())), "hard links of a file system with case");
        }
        assert!(
            !names.is_other(b"d", &file(4, 2, Kind::Directory)) && names.is_other(b"D", &file(4, 2, Kind::Directory))
        );
    }
}
