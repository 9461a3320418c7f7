//! What a sandbox was given: every file with its digest, and where its content lies. Owns the data and
//! the rule by which an unchanged file is recognised; [`file`] owns its bytes on disk.

pub(crate) mod file;

use crate::beneath::About;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// SHA-256 digest of the content of a file.
pub type Digest = [u8; 32];

/// The files that a sandbox was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Absolute path of the directory on the host.
    pub root: Vec<u8>,
    /// User and group ID of the files in the guest.
    pub owner: (u32, u32),
    /// When the directory was read, in seconds and nanoseconds since the epoch. Files that are not older
    /// may have changed since, without another time.
    pub taken: (i64, u32),
    /// The boot of the host in which the layers were written. They are not synced.
    pub(crate) boot: String,
    /// Names of the files of the layers, the lowest first.
    pub layers: Vec<String>,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// Number of sockets, devices, pipes and mount points that were left out.
    pub left_out: u64,
    /// Files by their path relative to the root, without the root itself.
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

/// A file that a sandbox was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Kind and content.
    pub kind: Kind,
    /// Permissions, and the sticky bit of directories. There are no setuid and setgid bits.
    pub mode: u32,
    /// Last change of the content, in seconds and nanoseconds since the epoch.
    pub modified: (i64, u32),
    /// Last change of the inode on the host.
    pub changed: (i64, u32),
    /// Inode number on the host.
    pub inode: u64,
}

/// Kind of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Directory.
    Directory,
    /// Regular file.
    File(Content),
    /// Symbolic link to this target.
    Symlink(Vec<u8>),
}

/// Content of a regular file, and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Size in bytes.
    pub size: u64,
    /// Digest.
    pub digest: Digest,
    /// Index of the layer.
    pub layer: u8,
    /// Offset in the layer in bytes.
    pub offset: u64,
}

impl Entry {
    /// Returns true if both are the same for the guest: kind, content, mode and time.
    pub(crate) fn is_same_for_guest(&self, other: &Self) -> bool {
        let is_same_kind = match (&self.kind, &other.kind) {
            (Kind::File(one), Kind::File(two)) => one.digest == two.digest,
            (one, two) => one == two,
        };
        is_same_kind && (self.mode, self.modified) == (other.mode, other.modified)
    }
}

impl Index {
    /// Returns true if every content lies in one of the lowest `count` layers.
    pub(crate) fn has_layers(&self, count: usize) -> bool {
        let is_there = |entry: &Entry| match &entry.kind {
            Kind::File(content) => usize::from(content.layer) < count,
            _ => true,
        };
        self.entries.values().all(is_there)
    }

    /// Returns the entry of a file that has not changed since this index was taken, as far as its
    /// attributes say: the same inode with the same size and times, all older than the index, as git
    /// treats its own index.
    pub(crate) fn unchanged(&self, path: &[u8], about: &About) -> Option<&Entry> {
        let entry = self.entries.get(path)?;
        let Kind::File(content) = &entry.kind else { return None };
        let is_same = content.size == about.size
            && (entry.inode, entry.modified, entry.changed) == (about.inode, about.modified, about.changed);
        (is_same && self.is_older(about.modified) && self.is_older(about.changed)).then_some(entry)
    }

    /// Returns true if a change after the index was taken would have another time. File systems with
    /// times in seconds round down.
    fn is_older(&self, time: (i64, u32)) -> bool {
        const COARSE_SECONDS: i64 = 2;
        if time.1 == 0 { time.0.saturating_add(COARSE_SECONDS) < self.taken.0 } else { time < self.taken }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;

    #[test]
    fn files_that_are_not_older_than_the_index_are_read_again() {
        let content = Content { size: 3, digest: [1; 32], layer: 0, offset: 4096 };
        let entry = Entry { kind: Kind::File(content), mode: 0o644, modified: (90, 5), changed: (90, 5), inode: 7 };
        let mut index = Index {
            root: b"/p".to_vec(),
            owner: (0, 0),
            taken: (100, 50),
            boot: String::new(),
            layers: vec![],
            bytes: 3,
            left_out: 0,
            entries: BTreeMap::from([(b"a".to_vec(), entry)]),
        };
        let about = About {
            kind: FileType::RegularFile,
            mode: 0o644,
            size: 3,
            device: 1,
            inode: 7,
            links: 1,
            owner: (0, 0),
            modified: (90, 5),
            changed: (90, 5),
            is_mount: false,
        };
        assert!(index.unchanged(b"a", &about).is_some());
        for changed in [
            About { size: 4, ..about },
            About { inode: 8, ..about },
            About { modified: (90, 6), ..about },
            About { changed: (91, 5), ..about },
        ] {
            assert!(index.unchanged(b"a", &changed).is_none(), "{changed:?}");
        }
        index.taken = (90, 5);
        assert!(index.unchanged(b"a", &about).is_none());
        index.taken = (90, 6);
        assert!(index.unchanged(b"a", &about).is_some());
        assert!(!index.is_older((89, 0)) && index.is_older((87, 0)));
    }
}
