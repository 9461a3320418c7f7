//! What a guest does with a share, beside what the host sees.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::*;
use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
};

#[test]
fn files_are_made_written_read_renamed_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    let mut guest = Guest::with(root.path(), "rw");
    let directory = guest.make_directory(ROOT, "src dir", 0o750).unwrap();
    let (file, handle) = guest.create(directory.node, "a", libc::O_RDWR | libc::O_EXCL, 0o640).unwrap();
    assert_eq!((file.mode, file.uid), (FILE | 0o640, 0));
    assert_eq!(guest.write(file.node, handle, 0, b"hello").unwrap(), 5);
    assert_eq!(guest.write(file.node, handle, 1 << 20, b"end").unwrap(), 3);
    assert_eq!(guest.read(file.node, handle, 0, 8).unwrap(), b"hello\0\0\0");
    assert_eq!(guest.read(file.node, handle, 1 << 30, 8).unwrap(), b"");
    // SEEK_HOLE: the hole begins in the first block's end.
    let hole = guest.ask(46, file.node, &fields![handle, 0u64, 4u32, 0u32]).unwrap();
    assert!((1..1 << 20).contains(&u64_at(&hole, 0)), "{hole:?}");
    guest.ask(20, file.node, &fields![handle, 1u32, 0u32]).unwrap();
    guest.ask(43, file.node, &fields![handle, 0u64, 5u64, 3u32, 0u32]).unwrap();
    let on_host = fs::read(at("src dir/a")).unwrap();
    assert_eq!((&on_host[..5], on_host.len()), (&b"\0\0\0\0\0"[..], (1 << 20) + 3));
    assert_eq!(fs::metadata(at("src dir")).unwrap().permissions().mode() & 0o7777, 0o750);

    // Over another file, and exchanged with one.
    fs::write(at("b"), "old").unwrap();
    guest.rename((directory.node, "a"), (ROOT, "b"), 0).unwrap();
    assert_eq!(guest.read(file.node, handle, 1 << 20, 3).unwrap(), b"end");
    fs::write(at("c"), "c").unwrap();
    assert_eq!(guest.rename((ROOT, "b"), (ROOT, "c"), 1).unwrap_err(), EEXIST);
    guest.rename((ROOT, "b"), (ROOT, "c"), 2).unwrap();
    assert_eq!(fs::read(at("b")).unwrap(), b"c");
    assert_eq!(guest.attributes(file.node).unwrap().0, (1 << 20) + 3);

    // Size, mode and times, by the node.
    guest.set(file.node, 1 | 8 | 16 | 32, 4, 0o600, 0).unwrap();
    let metadata = fs::metadata(at("c")).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o7777), (4, 0o600));
    assert_eq!((metadata.atime(), metadata.mtime(), metadata.mtime_nsec()), (1000, 2000, 6));

    // Links.
    let hard = guest.link(file.node, directory.node, "hard").unwrap();
    assert_eq!((hard.node, fs::metadata(at("c")).unwrap().nlink()), (file.node, 2));
    let soft = guest.symlink(ROOT, "soft", "../outside").unwrap();
    assert_eq!(guest.ask(5, soft.node, &[]).unwrap(), b"../outside");
    assert_eq!(fs::read_link(at("soft")).unwrap().to_str(), Some("../outside"));

    // A file that is open and removed.
    let (gone, open) = guest.create(ROOT, "gone", libc::O_RDWR, 0o644).unwrap();
    guest.unlink(ROOT, "gone").unwrap();
    guest.write(gone.node, open, 0, b"still there").unwrap();
    assert_eq!(guest.read(gone.node, open, 0, 99).unwrap(), b"still there");
    assert_eq!(guest.look_up(ROOT, "gone").unwrap_err(), ENOENT);

    // Appended by the host and the guest in turn.
    let (log, appended) = guest.create(ROOT, "log", libc::O_WRONLY | libc::O_APPEND, 0o644).unwrap();
    guest.write(log.node, appended, 0, b"1").unwrap();
    fs::OpenOptions::new().append(true).open(at("log")).unwrap().write_at(b"2", 0).unwrap();
    guest.write(log.node, appended, 1, b"3").unwrap();
    assert_eq!(fs::read(at("log")).unwrap(), b"123");

    for plus in [false, true] {
        let names = guest.list(ROOT, plus).unwrap();
        assert_eq!(names, [".", "..", "b", "c", "log", "soft", "src dir"]);
    }
    guest.unlink(directory.node, "hard").unwrap();
    guest.ask(11, ROOT, &fields!["src dir"]).unwrap();
    assert!(!at("src dir").exists());
}

#[test]
fn changes_of_the_host_are_seen_and_never_mistaken() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("d/e")).unwrap();
    fs::write(at("d/e/f"), "first").unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let directory = guest.walk("d/e").unwrap().node;
    let file = guest.look_up(directory, "f").unwrap().node;
    fs::write(at("d/e/f"), "longer").unwrap();
    assert_eq!(guest.attributes(file).unwrap().0, 6);
    // Another file with the same name: the node is of the old one, which is not opened any more.
    fs::write(at("d/e/new"), "other").unwrap();
    fs::rename(at("d/e/new"), at("d/e/f")).unwrap();
    assert_eq!(guest.open(file, libc::O_RDONLY).unwrap_err(), ESTALE);
    assert_eq!(guest.content("d/e/f").unwrap(), b"other");
    // The directory moves, and a link takes its place.
    fs::rename(at("d"), at("moved")).unwrap();
    symlink("moved", at("d")).unwrap();
    assert_eq!(guest.walk("d/e").unwrap_err(), -20);
    assert_eq!(guest.list(directory, true).unwrap(), [".", "..", "f"]);
    assert_eq!(guest.content("moved/e/f").unwrap(), b"other");
}

#[test]
fn owner_sets_the_mode_of_what_it_cannot_read() {
    let root = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root.path(), Some(4242), Some(4343)).unwrap();
    }
    let mut guest = Guest::with(root.path(), "rw");
    let (file, handle) = guest.create(ROOT, "f", libc::O_RDWR, 0o000).unwrap();
    guest.release(file.node, handle).unwrap();
    let directory = guest.make_directory(ROOT, "d", 0o000).unwrap();
    for (node, name) in [(file.node, "f"), (directory.node, "d")] {
        guest.set(node, 1, 0, 0o711, 0).unwrap();
        assert_eq!(fs::metadata(root.path().join(name)).unwrap().mode() & 0o7777, 0o711);
    }
    // Its target keeps its mode.
    let link = guest.symlink(ROOT, "l", "f").unwrap();
    assert_eq!(guest.set(link.node, 1, 0, 0o777, 0).unwrap_err(), EOPNOTSUPP);
    assert_eq!(fs::metadata(root.path().join("f")).unwrap().mode() & 0o7777, 0o711);
}

/// What POSIX says of calls that fail, and of the times of those that do not.
#[test]
fn errors_and_times_are_those_of_the_host() {
    const ENOTDIR: i32 = -20;
    const EISDIR: i32 = -21;
    const ENOTEMPTY: i32 = -39;
    let root = tempfile::tempdir().unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let directory = guest.make_directory(ROOT, "d", 0o755).unwrap();
    let below = guest.make_directory(directory.node, "e", 0o755).unwrap();
    guest.make_directory(ROOT, "empty", 0o755).unwrap();
    let (file, handle) = guest.create(ROOT, "f", libc::O_RDWR | libc::O_EXCL, 0o644).unwrap();
    let remove_directory = |guest: &mut Guest, name: &str| guest.ask(11, ROOT, &fields![name]).unwrap_err();
    assert_eq!(remove_directory(&mut guest, "d"), ENOTEMPTY);
    assert_eq!(remove_directory(&mut guest, "f"), ENOTDIR);
    assert_eq!(remove_directory(&mut guest, "x"), ENOENT);
    assert_eq!(guest.unlink(ROOT, "d").unwrap_err(), EISDIR);
    assert_eq!(guest.make_directory(ROOT, "f", 0o755).unwrap_err(), EEXIST);
    assert_eq!(guest.symlink(ROOT, "f", "x").unwrap_err(), EEXIST);
    assert_eq!(guest.link(file.node, ROOT, "d").unwrap_err(), EEXIST);
    assert_eq!(guest.create(ROOT, "f", libc::O_RDWR | libc::O_EXCL, 0o644).unwrap_err(), EEXIST);
    assert_eq!(guest.link(directory.node, ROOT, "g").unwrap_err(), EPERM);
    assert_eq!(guest.rename((ROOT, "f"), (ROOT, "d"), 0).unwrap_err(), EISDIR);
    assert_eq!(guest.rename((ROOT, "d"), (ROOT, "f"), 0).unwrap_err(), ENOTDIR);
    assert_eq!(guest.rename((ROOT, "empty"), (ROOT, "d"), 0).unwrap_err(), ENOTEMPTY);
    assert_eq!(guest.rename((ROOT, "d"), (below.node, "d"), 0).unwrap_err(), EINVAL);
    assert_eq!(guest.rename((ROOT, "x"), (ROOT, "y"), 0).unwrap_err(), ENOENT);
    guest.rename((directory.node, "e"), (ROOT, "empty"), 0).unwrap();
    assert!(root.path().join("empty").exists() && !root.path().join("d/e").exists());

    let changed = || {
        let metadata = fs::metadata(root.path().join("f")).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let mut before = changed();
    let mut advanced = || {
        let now = changed();
        std::mem::replace(&mut before, now) < now
    };
    let pause = || std::thread::sleep(std::time::Duration::from_millis(20));
    pause();
    guest.set(file.node, 8, 100, 0, 0).unwrap();
    assert!(advanced());
    pause();
    guest.set(file.node, 1, 0, 0o600, 0).unwrap();
    assert!(advanced());
    pause();
    guest.link(file.node, ROOT, "g").unwrap();
    assert!(advanced());
    pause();
    guest.write(file.node, handle, 0, b"x").unwrap();
    assert!(advanced());
    pause();
    assert_eq!(guest.link(file.node, ROOT, "g").unwrap_err(), EEXIST);
    assert!(!advanced());
}

#[test]
fn single_file_is_shared() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a file");
    fs::write(&path, "content").unwrap();
    let mut guest = Guest::with(&path, "rw");
    assert_eq!(guest.attributes(ROOT).unwrap(), (7, FILE | fs::metadata(&path).unwrap().mode() & 0o777));
    let handle = guest.open(ROOT, libc::O_RDWR | libc::O_TRUNC).unwrap();
    guest.write(ROOT, handle, 0, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    guest.set(ROOT, 1, 0, 0o600, 0).unwrap();
    assert_eq!(guest.look_up(ROOT, "x").unwrap_err(), -20);
    assert_eq!(guest.link(ROOT, ROOT, "x").unwrap_err(), EPERM);
}

#[test]
fn read_only_share_refuses_every_change() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("f"), "content").unwrap();
    let mut guest = Guest::with(root.path(), "ro");
    assert_eq!(guest.content("f").unwrap(), b"content");
    let file = guest.walk("f").unwrap().node;
    for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(file, flags).unwrap_err(), EROFS);
    }
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.write(file, handle, 0, b"x").unwrap_err(), EROFS);
    assert_eq!(guest.set(file, 1, 0, 0o777, 0).unwrap_err(), EROFS);
    assert_eq!(guest.create(ROOT, "g", libc::O_RDWR, 0o644).unwrap_err(), EROFS);
    assert_eq!(guest.make_directory(ROOT, "g", 0o755).unwrap_err(), EROFS);
    assert_eq!(guest.symlink(ROOT, "g", "f").unwrap_err(), EROFS);
    assert_eq!(guest.link(file, ROOT, "g").unwrap_err(), EROFS);
    assert_eq!(guest.rename((ROOT, "f"), (ROOT, "g"), 0).unwrap_err(), EROFS);
    assert_eq!(guest.unlink(ROOT, "f").unwrap_err(), EROFS);
    assert_eq!(guest.ask(21, file, &fields![1u32, 0u32, "user.a", &b"b"[..]]).unwrap_err(), EROFS);
    assert_eq!(guest.ask(34, file, &fields![2u32, 0u32]).unwrap_err(), EROFS);
    guest.ask(34, file, &fields![4u32, 0u32]).unwrap();
    assert_eq!(fs::read(root.path().join("f")).unwrap(), b"content");
}

#[test]
fn extended_attributes_of_users_work_and_others_do_not_exist() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("f"), "").unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let file = guest.walk("f").unwrap().node;
    if guest.ask(21, file, &fields![3u32, 0u32, "user.a", &b"abc"[..]]) == Err(EOPNOTSUPP) {
        // The file system of temporary files has none.
        return;
    }
    assert_eq!(guest.ask(22, file, &fields![64u32, 0u32, "user.a"]).unwrap(), b"abc");
    assert_eq!(u64_at(&guest.ask(22, file, &fields![0u32, 0u32, "user.a"]).unwrap(), 0), 3);
    assert_eq!(guest.ask(23, file, &fields![64u32, 0u32]).unwrap(), b"user.a\0");
    for name in ["security.capability", "trusted.overlay.opaque", "system.posix_acl_access", "user."] {
        assert_eq!(guest.ask(21, file, &fields![1u32, 0u32, name, &b"x"[..]]).unwrap_err(), EOPNOTSUPP, "{name}");
        assert_eq!(guest.ask(22, file, &fields![64u32, 0u32, name]).unwrap_err(), ENODATA, "{name}");
    }
    guest.ask(24, file, &fields!["user.a"]).unwrap();
    assert_eq!(guest.ask(23, file, &fields![64u32, 0u32]).unwrap(), b"");
}

#[test]
fn longest_names_work_and_longer_ones_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let name = "n".repeat(255);
    guest.create(ROOT, &name, libc::O_RDWR, 0o644).unwrap();
    assert!(root.path().join(&name).exists());
    assert_eq!(guest.create(ROOT, &"n".repeat(256), libc::O_RDWR, 0o644).unwrap_err(), ENAMETOOLONG);
    for number in 0..300 {
        fs::write(root.path().join(format!("{number:0>200}")), "").unwrap();
    }
    assert_eq!(guest.list(ROOT, true).unwrap().len(), 303);
}

/// Requests of which many are under way are answered by several threads, whose answers must not mix.
#[test]
fn answers_to_many_requests_at_the_same_time_are_whole() {
    let root = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..4 << 20).map(|at: u32| (at / 1021) as u8).collect();
    fs::write(root.path().join("f"), &content).unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let file = guest.walk("f").unwrap().node;
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    let size = 128 << 10;
    for _ in 0..8 {
        let mut expected = std::collections::HashMap::new();
        for part in 0..32u64 {
            let body = fields![handle, part * size, size as u32, 0u32, 0u64, 0u32, 0u32];
            let request = guest.request(15, file, &body);
            expected.insert(u64_at(&request, 8), (part * size) as usize);
            guest.send(&request);
        }
        for _ in 0..32 {
            let (unique, answer) = guest.answer();
            let at = expected.remove(&unique).unwrap();
            assert!(answer.unwrap() == content[at..at + size as usize], "another part of the file");
        }
    }
}
