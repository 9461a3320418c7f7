//! Describes directory trees, so that a test can compare a tree with its copy. The tests of this crate use it, and
//! `tests/tests/files/transfer.rs` includes it for the end-to-end tests of copies.

use rustix::fs::{AtFlags, Timespec, Timestamps, getxattr, utimensat};
use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path};

/// Sets the time of a file, directory or symbolic link.
pub(crate) fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Returns a description of everything in a tree that a copy must preserve, by path: mode, time,
/// content, the attribute `user.test`, and which names are hard links of the same file.
pub(crate) fn description(root: &Path) -> BTreeMap<String, String> {
    let (mut all, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    describe(root, root, &mut all, &mut inodes);
    all
}

fn describe(root: &Path, path: &Path, all: &mut BTreeMap<String, String>, inodes: &mut BTreeMap<u64, String>) {
    let about = fs::symlink_metadata(path).unwrap();
    let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    let kind = about.file_type();
    let content = if kind.is_symlink() {
        format!("-> {:?}", fs::read_link(path).unwrap())
    } else if kind.is_dir() {
        "directory".to_owned()
    } else {
        let first = inodes.entry(about.ino()).or_insert_with(|| name.clone());
        let mut attribute = [0; 64];
        let len = getxattr(path, "user.test", &mut attribute[..]).unwrap_or(0);
        let attribute = String::from_utf8_lossy(&attribute[..len]).into_owned();
        let content = fs::read(path).unwrap();
        let sum = content.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
        format!("{} {sum} first={first} {attribute}", content.len())
    };
    let mode = if kind.is_symlink() { 0 } else { about.mode() & 0o7777 };
    all.insert(name, format!("{mode:o} {}.{} {content}", about.mtime(), about.mtime_nsec()));
    if kind.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        // File systems list names in different orders, and the first name of a file is in its
        // description.
        entries.sort();
        for entry in entries {
            describe(root, &entry, all, inodes);
        }
    }
}
