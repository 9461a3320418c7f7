//! Layers of changes that no agent of ours writes: paths out of the project, contradictions, and sizes.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use sandboxvm_archive::{Entry, Extent, Kind, Timestamp, Writer};
use sandboxvm_workspace::{Changes, CopyOptions, Index, LayerError, LayerLimits, copy_in, examine};
use std::{fs, time::Instant};

fn index(files: &[&str]) -> Index {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("project");
    fs::create_dir(&project).unwrap();
    for path in files {
        fs::create_dir_all(project.join(path).parent().unwrap()).unwrap();
        fs::write(project.join(path), path).unwrap();
    }
    let copied = copy_in(&project, &directory.path().join("cache"), (0, 0), &CopyOptions::default()).unwrap();
    Index::read(&copied.index).unwrap()
}

fn read(index: &Index, entries: &[(&str, Kind)]) -> Result<Changes, LayerError> {
    examine(index, &pack(entries)[..], &LayerLimits::default())
}

fn pack(entries: &[(&str, Kind)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, kind) in entries {
        let (kind, modified) = (kind.clone(), Timestamp::default());
        let size = kind.stored();
        let entry =
            Entry { path: path.as_bytes().into(), kind, mode: 0o6755, uid: 0, gid: 0, modified, attributes: vec![] };
        writer.begin(&entry).unwrap();
        writer.content(&vec![b'x'; size as usize]).unwrap();
        writer.end().unwrap();
    }
    writer.finish().unwrap()
}

fn file(size: u64) -> Kind {
    Kind::File { size, extents: None }
}

fn link(target: &str) -> Kind {
    Kind::Symlink(target.into())
}

#[test]
fn paths_out_of_the_project_are_refused() {
    let index = index(&["a"]);
    for path in ["../x", "a/../../x", "x/..", "/../x", &format!("{}x", "d/".repeat(400)), &"n".repeat(256)] {
        assert!(read(&index, &[(path, file(1))]).is_err(), "{path}");
        assert!(read(&index, &[("f", file(1)), ("l", Kind::HardLink(path.into()))]).is_err(), "{path}");
    }
    assert!(read(&index, &[(".sandboxvm-apply-0/new-0", file(1))]).is_err(), "files of an apply");
    // A leading slash is the root of the project.
    let changes = read(&index, &[("/etc/passwd", file(1))]).unwrap();
    let paths: Vec<_> = changes.files.iter().map(|change| change.path.escape_ascii().to_string()).collect();
    assert_eq!(paths, ["etc", "etc/passwd"]);
}

#[test]
fn no_path_leads_through_a_link_or_a_file_of_the_layer() {
    let index = index(&["a/b"]);
    for entries in [
        [("l", link("/etc")), ("l/passwd", file(1))],
        [("l/passwd", file(1)), ("l", link("/etc"))],
        [("f", file(1)), ("f/x", Kind::Directory)],
        [("a", link("/etc")), ("a/b", file(1))],
        [("p", Kind::Fifo), ("p/x", file(1))],
        [("l", link("/etc")), ("l/.wh.passwd", file(0))],
    ] {
        let error = read(&index, &entries).unwrap_err();
        assert!(error.to_string().contains("leads through"), "{error}");
    }
}

#[test]
fn hard_links_lead_to_files_of_the_layer_only() {
    let index = index(&["given"]);
    for target in ["given", "/etc/passwd", "none", "d"] {
        let result = read(&index, &[("d", Kind::Directory), ("l", Kind::HardLink(target.into()))]);
        assert!(matches!(result, Err(LayerError::Entry { .. })), "{target}");
    }
    let changes = read(&index, &[("f", file(3)), ("l", Kind::HardLink("f".into()))]).unwrap();
    assert_eq!(changes.files[0].new, changes.files[1].new);
    assert_eq!(changes.files[0].new.as_ref().unwrap().mode, 0o755, "no setuid");
}

#[test]
fn devices_sparse_files_and_unknown_kinds_are_no_changes() {
    let index = index(&["a", "b"]);
    let device = Kind::Device { is_block: true, major: 8, minor: 0 };
    let changes = read(&index, &[("a", device), ("pipe", Kind::Fifo)]).unwrap();
    assert_eq!(changes.special, [b"a".to_vec(), b"pipe".to_vec()]);
    assert!(changes.files.len() == 1 && changes.files[0].new.is_none());
    let sparse = Kind::File { size: 1 << 60, extents: Some(vec![Extent { offset: 1 << 40, len: 1 }]) };
    assert!(read(&index, &[("huge", sparse)]).unwrap_err().to_string().contains("sparse"));
}

#[test]
fn git_is_found_in_every_spelling() {
    let index = index(&["a"]);
    let names = [".git/config", ".GIT/config", "sub/.Git/hooks/x", "module/.git", ".g\u{200c}it/config"];
    let changes = read(&index, &names.map(|name| (name, file(1)))).unwrap();
    let is_git = |path: &[u8]| path.to_ascii_lowercase().windows(4).any(|part| part == b".git");
    assert!(changes.files.iter().all(|change| !is_git(&change.path)));
    assert_eq!(changes.git.len(), 10);
}

#[test]
fn directories_without_entries_count_as_entries() {
    let index = index(&["a"]);
    let names: Vec<_> =
        (0..100).map(|number| format!("{}{number}/f", "d/".repeat(200).replace('d', &number.to_string()))).collect();
    let entries: Vec<_> = names.iter().map(|name| (&name[..], file(0))).collect();
    let archive = pack(&entries);
    let limits = |entries, name_bytes| LayerLimits { entries, name_bytes };
    let read = |limits: LayerLimits| examine(&index, &archive[..], &limits);
    // Each entry has 201 directories above it, which have some 200 bytes each.
    let changes = read(limits(100 * 202, 10 << 20)).unwrap();
    assert_eq!(changes.files.len(), 100 * 202);
    for limits in [limits(100 * 202 - 1, 10 << 20), limits(1 << 20, 1 << 20)] {
        assert!(matches!(read(limits), Err(LayerError::TooMany { .. })));
    }
    // A directory with an entry counts once.
    let archive = pack(&[("d", Kind::Directory), ("d/e", Kind::Directory), ("d/e/f", file(0)), ("d/e/g", file(0))]);
    assert!(examine(&index, &archive[..], &limits(4, 99)).is_ok());
}

#[test]
fn many_entries_are_read_in_seconds_and_have_a_limit() {
    let index = index(&["a"]);
    let names: Vec<_> = (0..100_000).map(|number| format!("d{}/\x1b[2J\n{number}", number % 100)).collect();
    let entries: Vec<_> = names.iter().map(|name| (&name[..], file(1))).collect();
    let begin = Instant::now();
    let changes = read(&index, &entries).unwrap();
    assert_eq!(changes.files.len(), 100_100);
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
    let mut writer = Writer::new(Vec::new());
    for number in 0..11 {
        let modified = Timestamp::default();
        let path = format!("{number}").into_bytes();
        writer.begin(&Entry { path, kind: file(0), mode: 0, uid: 0, gid: 0, modified, attributes: vec![] }).unwrap();
        writer.end().unwrap();
    }
    let archive = writer.finish().unwrap();
    for limits in [LayerLimits { entries: 10, ..LayerLimits::default() }, LayerLimits { entries: 99, name_bytes: 11 }] {
        assert!(matches!(examine(&index, &archive[..], &limits), Err(LayerError::TooMany { .. })));
    }
    for end in [1, 511, 512, 700] {
        let cut = &archive[..end];
        assert!(examine(&index, cut, &LayerLimits::default()).is_err() || end == 512, "{end}");
    }
}
