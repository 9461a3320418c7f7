//! The changes of a workspace are read as a guest wrote them.
//!
//! Input: a byte. If it is odd, the rest is an archive. If it is even, the rest describes entries: for each its
//! kind, its path as the lengths of its names, and what belongs to the kind. The target panics if a change names
//! a path outside of the project, contradicts the index, or appears twice.

use crate::input::Input;
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_workspace::{CopyOptions, Index, LayerLimits, copy_in, examine};
use std::{collections::BTreeSet, fs, sync::OnceLock};

const NAMES: [&str; 10] = ["a", "b", "c", ".wh.a", ".wh..wh..opq", ".", "a/b", "..", ".git", "long-name-of-a-file"];

/// Returns the index of a small project.
fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let project = directory.path().join("project");
        fs::create_dir_all(project.join("a/b/c")).expect("a directory");
        for (path, content) in [("a/a", "one"), ("a/b/b", "two"), ("a/b/c/c", "three"), ("b", "four"), ("c", "four")] {
            fs::write(project.join(path), content).expect("a file");
        }
        let cache = directory.path().join("cache");
        let copied = copy_in(&project, &cache, (0, 0), &CopyOptions::default()).expect("a copy");
        Index::read(&copied.index).expect("an index")
    })
}

fn path(input: &mut Input<'_>) -> Vec<u8> {
    let names = input.byte().unwrap_or(0) % 4;
    let names: Vec<_> = (0..=names).map(|_| NAMES[usize::from(input.byte().unwrap_or(0) % 10)]).collect();
    names.join("/").into_bytes()
}

fn archive(mut input: Input<'_>) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    while let Some(kind) = input.byte() {
        let path = path(&mut input);
        let byte = input.byte().unwrap_or(0);
        let kind = match kind % 7 {
            0 | 1 => Kind::File { size: u64::from(byte) * 40, extents: None },
            2 => Kind::Directory,
            3 => Kind::Symlink(self::path(&mut input)),
            4 => Kind::HardLink(self::path(&mut input)),
            5 => Kind::Device { is_block: byte & 1 == 1, major: u32::from(byte) << 5, minor: byte.into() },
            _ => Kind::Fifo,
        };
        let size = usize::try_from(kind.stored()).expect("some kilobytes");
        let modified = Timestamp::default();
        let entry = Entry { path, kind, mode: u32::from(byte) << 4, uid: 1, gid: 2, modified, attributes: vec![] };
        writer.begin(&entry).expect("memory");
        writer.content(&vec![byte; size]).expect("memory");
        writer.end().expect("memory");
    }
    writer.finish().expect("memory")
}

/// Reads changes. The module describes the input.
pub fn workspace_changes(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let archive = if first & 1 == 1 { rest.to_vec() } else { archive(Input::new(rest)) };
    let limits = LayerLimits { entries: 1000, name_bytes: 1 << 16 };
    let Ok(changes) = examine(index(), &archive[..], &limits) else { return };
    let mut paths = BTreeSet::new();
    for change in changes.files.iter().chain(&changes.git) {
        for path in [Some(&change.path), change.from.as_ref()].into_iter().flatten() {
            let names = || path.split(|byte| *byte == b'/');
            assert!(names().all(|name| !name.is_empty() && name != b"." && name != b".." && !name.contains(&0)));
            assert!(paths.insert(path.clone()), "a path changes twice");
        }
        let given = index().entries.get(change.from.as_ref().unwrap_or(&change.path));
        assert_eq!(given.is_some(), change.old.is_some());
        assert!(given.zip(change.old.as_ref()).is_none_or(|(given, old)| given.kind == old.kind));
        assert!(change.old.is_some() || change.new.is_some());
        assert!(change.new.as_ref().is_none_or(|new| new.mode & 0o6000 == 0));
    }
    assert!(changes.files.iter().all(|change| !change.path.split(|byte| *byte == b'/').any(|name| name == b".git")));
}
