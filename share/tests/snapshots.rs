//! A guest whose memory was copied: what it refers to, in the process that serves the copy.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::*;
use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
};

/// A part of nodes with one entry.
fn node(number: u64, parent: u64, identity: [u64; 3], name: &str) -> Vec<u8> {
    let [device, inode, birth] = identity;
    let length = name.len() as u32;
    fields![0u32, 0u32, number, parent, device, inode, birth, 1u64, length, name.as_bytes()]
}

/// A part of handles with one entry.
fn handle(number: u64, node: u64, flags: i32, is_directory: u32) -> Vec<u8> {
    fields![1u32, 0u32, number, node, flags.cast_unsigned(), is_directory]
}

#[test]
fn files_of_a_copy_are_those_of_the_original_or_stale() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("d/e")).unwrap();
    for name in ["d/e/kept", "d/e/replaced", "d/e/removed", "d/e/again", "d/e/moved"] {
        fs::write(at(name), name).unwrap();
    }
    let mut original = Guest::with(root.path(), "rw");
    let directory = original.walk("d/e").unwrap().node;
    let [kept, replaced, removed, again, moved] = ["kept", "replaced", "removed", "again", "moved"].map(|name| {
        let node = original.look_up(directory, name).unwrap().node;
        (node, original.open(node, libc::O_RDWR).unwrap())
    });
    let (log, appended) = original.create(ROOT, "log", libc::O_WRONLY | libc::O_APPEND, 0o644).unwrap();
    original.write(log.node, appended, 0, b"1").unwrap();
    let listed = u64_at(&original.ask(27, directory, &fields![0u32, 0u32]).unwrap(), 0);
    let record = original.save();

    // Until the copy runs, the host and the original change things.
    original.write(kept.0, kept.1, 0, b"K").unwrap();
    fs::write(at("new"), "new").unwrap();
    fs::rename(at("new"), at("d/e/replaced")).unwrap();
    fs::remove_file(at("d/e/removed")).unwrap();
    fs::rename(at("d/e/moved"), at("elsewhere")).unwrap();
    drop(original);
    fs::remove_file(at("d/e/again")).unwrap();
    fs::write(at("d/e/again"), "another").unwrap();

    let mut copy = Guest::with(root.path(), "rw");
    assert_eq!(copy.attributes(kept.0).unwrap_err(), ESTALE);
    copy.restore(&record);
    assert_eq!(copy.read(kept.0, kept.1, 0, 99).unwrap(), b"K/e/kept");
    copy.write(kept.0, kept.1, 1, b"opy").unwrap();
    assert_eq!(fs::read(at("d/e/kept")).unwrap(), b"Kopykept");
    assert_eq!(copy.attributes(kept.0).unwrap().0, 8);
    copy.write(log.node, appended, 0, b"2").unwrap();
    assert_eq!(fs::read(at("log")).unwrap(), b"12");
    let part = copy.ask(28, directory, &fields![listed, 0u64, 4096u32, 0u32, 0u64, 0u32, 0u32]).unwrap();
    assert!(!part.is_empty());
    for (node, handle) in [replaced, removed, again, moved] {
        assert_eq!(copy.attributes(node).unwrap_err(), ESTALE);
        assert_eq!(copy.open(node, libc::O_RDONLY).unwrap_err(), ESTALE);
        assert_eq!(copy.read(node, handle, 0, 9).unwrap_err(), ESTALE);
        assert_eq!(copy.write(node, handle, 0, b"x").unwrap_err(), ESTALE);
    }
    assert_eq!(copy.content("d/e/replaced").unwrap(), b"new");
    assert_eq!(copy.content("d/e/again").unwrap(), b"another");
    // New numbers are not those of the original, and what was forgotten is gone.
    let fresh = copy.look_up(directory, "replaced").unwrap().node;
    assert!(![kept.0, replaced.0, removed.0, again.0, moved.0, log.node, directory].contains(&fresh));
    assert_eq!(copy.look_up(directory, "kept").unwrap().node, kept.0);
    copy.forget(log.node, 1);
    // It has no answer, and another thread may carry it out later.
    assert!((0..10_000).any(|_| copy.attributes(log.node) == Err(ESTALE)));
}

#[test]
fn record_of_many_files_has_several_parts() {
    let root = tempfile::tempdir().unwrap();
    let name = |number: usize| format!("{number:0>200}");
    for number in 0..2000 {
        fs::write(root.path().join(name(number)), "").unwrap();
    }
    let mut original = Guest::with(root.path(), "ro");
    let nodes: Vec<u64> = (0..2000).map(|number| original.look_up(ROOT, &name(number)).unwrap().node).collect();
    let record = original.save();
    assert_eq!(record.len(), 5);
    assert!(record.iter().all(|part| part.len() <= 128 << 10));
    let mut copy = Guest::with(root.path(), "ro");
    copy.restore(&record);
    assert!(nodes.iter().all(|node| copy.attributes(*node).is_ok()));
    // And the copy of a copy.
    assert_eq!(copy.save(), record);
}

/// A guest can change the record in its memory. It gets nothing by that which it could not look up or open.
#[test]
fn forged_records_lead_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("root");
    fs::create_dir_all(root.join("d")).unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::write(root.join("d/f"), "content").unwrap();
    symlink("../secret", root.join("link")).unwrap();
    let identity = |path: &str| {
        let metadata = fs::metadata(outside.path().join(path)).unwrap();
        let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
        let born = metadata.created().map(|time| time.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos());
        [u64::from(major) << 32 | u64::from(minor), metadata.ino(), born.unwrap_or(0) as u64]
    };
    let (secret, file) = (identity("secret"), identity("root/d/f"));
    let mut guest = Guest::with(&root, "ro");
    // The attack works for a file that the guest could look up.
    let directory = guest.walk("d").unwrap().node;
    guest.restore(&[node(70, directory, file, "f"), handle(71, 70, libc::O_RDONLY, 0)]);
    assert_eq!(guest.read(70, 71, 0, 99).unwrap(), b"content");

    // The identity of a file outside, at any place below the root; directories above each other; a handle of
    // nothing, of a link, of another kind, and for writing.
    for (number, name) in [(80, "secret"), (81, "link"), (82, "d")] {
        guest.restore(&[node(number, ROOT, [secret[0], secret[1], secret[2] + number], name)]);
        assert_eq!(guest.attributes(number).unwrap_err(), ESTALE);
    }
    // A removed file, whose number the file system gave to another one.
    if file[2] != 0 {
        guest.restore(&[node(85, directory, [file[0], file[1], file[2] - 1], "f")]);
        assert_eq!(guest.attributes(85).unwrap_err(), ESTALE);
    }
    guest.restore(&[node(83, ROOT, secret, "link"), handle(84, 83, libc::O_RDONLY, 0)]);
    assert_eq!(guest.open(83, libc::O_RDONLY).unwrap_err(), ESTALE);
    guest.restore(&[node(90, 91, [1, 1, 1], "x"), node(91, 90, [1, 2, 1], "x"), node(92, 92, [1, 3, 1], "x")]);
    for number in [90, 91, 92] {
        assert_eq!(guest.attributes(number).unwrap_err(), ESTALE);
        assert_eq!(guest.look_up(number, "f").unwrap_err(), ESTALE);
    }
    guest.restore(&[handle(100, 12345, libc::O_RDONLY, 0), handle(101, 70, libc::O_RDWR, 0)]);
    guest.restore(&[handle(102, directory, libc::O_RDONLY, 0), handle(103, 70, 0, 1)]);
    for number in [84, 100, 101, 102, 103] {
        assert_eq!(guest.read(70, number, 0, 9).unwrap_err(), ESTALE, "{number}");
    }
    // What is not a record.
    let twice = node(70, ROOT, [9, 9, 9], "y");
    let same_file = node(72, ROOT, file, "f");
    let again = handle(71, 70, libc::O_RDONLY, 0);
    let mut long = node(73, ROOT, [9, 9, 9], "y");
    long.push(0);
    for bad in [twice, same_file, again, long, node(1, ROOT, [9, 9, 9], "y"), node(0, ROOT, [9, 9, 9], "y")] {
        assert_eq!(guest.ask(RESTORE, 0, &bad).unwrap_err(), EINVAL, "{bad:?}");
    }
    for name in ["", ".", "..", "a/b", "../secret", "a\0b"] {
        assert_eq!(guest.ask(RESTORE, 0, &node(74, ROOT, [9, 9, 9], name)).unwrap_err(), EINVAL, "{name:?}");
    }
    assert_eq!(guest.ask(RESTORE, 0, &[2, 0, 0, 0, 0, 0, 0, 0]).unwrap_err(), EINVAL);
    assert_eq!(guest.ask(RESTORE, 0, &[]).unwrap_err(), EINVAL);
    assert_eq!(guest.ask(SAVE, 0, &fields![3u32, 0u32, 0u64]).unwrap_err(), EINVAL);
    assert_eq!(guest.ask(SAVE, 0, &fields![2u32, 0u32, 0u64]).unwrap().len(), 24);
    assert_eq!(guest.content("d/f").unwrap(), b"content");
}

/// The limits hold for a record as for lookups, however often it is sent.
#[test]
fn records_beyond_the_limits_are_refused() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("f"), "content").unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let (mut refused, mut first) = (None, 2u64);
    while refused.is_none() && first < 1 << 20 {
        let mut part = fields![0u32, 0u32];
        for number in first..first + 2000 {
            part.extend(fields![number, ROOT, 1u64, number, 0u64, 1u64, 1u32, &b"x"[..]]);
        }
        first += 2000;
        refused = guest.ask(RESTORE, 0, &part).err();
    }
    assert_eq!(refused, Some(ENFILE));
    assert!((1 << 19..(1 << 19) + 4000).contains(&first), "{first}");
    // Each handle is an open file.
    let mut guest = Guest::with(root.path(), "rw");
    let file = guest.walk("f").unwrap().node;
    let mut refused = None;
    for first in 0..20 {
        let mut part = fields![1u32, 0u32];
        for number in 0..1000u64 {
            part.extend(fields![first * 1000 + number, file, libc::O_RDWR.cast_unsigned(), 0u32]);
        }
        refused = refused.or(guest.ask(RESTORE, 0, &part).err());
    }
    assert_eq!(refused, Some(ENFILE));
    let open = fs::read_dir(format!("/proc/{}/fd", guest.process.id())).map(|files| files.count());
    assert!(open.unwrap_or(0) < 16_384 / 2 + 64);
    assert_eq!(guest.look_up(ROOT, "f").unwrap().node, file);
}
