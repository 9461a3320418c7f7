//! The copy of a share that a fork gets: what it contains, what the memory of the fork refers to in it, and what it
//! may not be or do.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::*;
use rustix::{
    fs::{Mode, OFlags, mkfifoat},
    process::geteuid,
};
use std::{
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::Path,
    process::{Command, Stdio},
};

const ENOSPC: i32 = -28;

fn named(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Copies a share by the real process, or returns its last words.
fn copy(source: &Path, target: &Path, bytes: u64, names: u64) -> Result<(), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxvm-share"));
    command.arg(format!("copy:{bytes}:{names}"));
    let command = command.stdin(named(target)).stdout(named(source)).stderr(Stdio::piped());
    let output = command.output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[test]
fn copy_has_the_content_of_its_source_and_nothing_else() {
    let (root, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("d/e")).unwrap();
    fs::write(at("d/e/f"), "content").unwrap();
    fs::set_permissions(at("d/e/f"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at("d/e"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::hard_link(at("d/e/f"), at("same")).unwrap();
    symlink("/etc/passwd", at("link")).unwrap();
    mkfifoat(File::open(root.path()).unwrap(), "pipe", Mode::RUSR).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_at(b"end", 1 << 30).unwrap();
    for (file, name) in [(at("d/e/f"), "user.a"), (at("d"), "user.b")] {
        rustix::fs::setxattr(file, name, b"value", rustix::fs::XattrFlags::empty()).unwrap();
    }
    copy(root.path(), copied.path(), 1 << 20, 100).unwrap();
    let of_copy = |path: &str| copied.path().join("files").join(path);
    let mut names: Vec<_> = fs::read_dir(of_copy("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d", "link", "same", "sparse"]);
    let (file, source) = (fs::metadata(of_copy("d/e/f")).unwrap(), fs::metadata(at("d/e/f")).unwrap());
    // Without the setuid bit.
    assert_eq!((file.mode() & 0o7777, file.nlink(), file.mtime_nsec()), (0o751, 2, source.mtime_nsec()));
    assert_eq!(file.ino(), fs::metadata(of_copy("same")).unwrap().ino());
    assert_ne!(file.ino(), source.ino());
    assert_eq!(fs::metadata(of_copy("d/e")).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_link(of_copy("link")).unwrap(), Path::new("/etc/passwd"));
    let sparse = fs::metadata(of_copy("sparse")).unwrap();
    assert!(sparse.size() == (1 << 30) + 3 && sparse.blocks() < 1024);
    for (path, name) in [("d/e/f", "user.a"), ("d", "user.b")] {
        let mut value = [0; 9];
        let length = rustix::fs::getxattr(of_copy(path), name, &mut value).unwrap();
        assert_eq!(&value[..length], b"value");
    }
    // The two are separate.
    fs::write(of_copy("same"), "changed").unwrap();
    assert_eq!(fs::read(at("d/e/f")).unwrap(), b"content");
}

/// The memory of a fork refers to files of the source by their identity.
#[test]
fn what_a_fork_has_open_is_open_in_the_copy() {
    let (root, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(root.path().join("d")).unwrap();
    fs::write(root.path().join("d/f"), "content").unwrap();
    let mut original = Guest::with(root.path(), "rw");
    let directory = original.walk("d").unwrap().node;
    let file = original.look_up(directory, "f").unwrap().node;
    let opened = original.open(file, libc::O_RDWR).unwrap();
    let record = original.save();
    copy(root.path(), copied.path(), 1 << 20, 100).unwrap();

    let mut fork = Guest::of(copied.path(), "copied:0:0:0");
    fork.restore(&record);
    assert_eq!(fork.read(file, opened, 0, 99).unwrap(), b"content");
    fork.write(file, opened, 0, b"C").unwrap();
    let (made, _) = fork.create(directory, "made", libc::O_RDWR, 0o644).unwrap();
    assert!(fork.attributes(made.node).is_ok());
    assert_eq!(fs::read(root.path().join("d/f")).unwrap(), b"content");
    assert_eq!(fs::read(copied.path().join("files/d/f")).unwrap(), b"Content");
    assert!(!root.path().join("d/made").exists());
    // The original keeps its files.
    original.write(file, opened, 0, b"X").unwrap();
    assert_eq!(fork.read(file, opened, 0, 99).unwrap(), b"Content");
    // The table is not among the files.
    assert_eq!(fork.look_up(ROOT, "identities").unwrap_err(), ENOENT);

    // And the copy of a copy.
    let (record, second) = (fork.save(), tempfile::tempdir().unwrap());
    copy(&copied.path().join("files"), second.path(), 1 << 20, 100).unwrap();
    let mut third = Guest::of(second.path(), "copied:0:0:0");
    third.restore(&record);
    assert_eq!(third.read(file, opened, 0, 99).unwrap(), b"Content");
}

#[test]
fn share_of_one_file_is_copied() {
    let (root, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shared = root.path().join("shared");
    fs::write(&shared, "content").unwrap();
    copy(&shared, copied.path(), 1 << 20, 1).unwrap();
    let mut guest = Guest::of(copied.path(), "copied:0:0:0");
    let opened = guest.open(ROOT, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(ROOT, opened, 0, 99).unwrap(), b"content");
}

#[test]
fn sources_beyond_the_limits_are_refused() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), vec![1; 9000]).unwrap();
    fs::write(root.path().join("b"), "").unwrap();
    let copied = || tempfile::tempdir().unwrap();
    assert!(copy(root.path(), copied().path(), 1 << 20, 2).is_ok());
    assert!(copy(root.path(), copied().path(), 1 << 20, 1).unwrap_err().contains("more than 1 files"));
    assert!(copy(root.path(), copied().path(), 8999, 9).unwrap_err().contains("more than the 8999 bytes"));
    let deep = tempfile::tempdir().unwrap();
    let mut directory = named(deep.path());
    for _ in 0..1100 {
        rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
        directory = rustix::fs::openat(&directory, "d", OFlags::PATH, Mode::empty()).unwrap();
    }
    assert!(copy(deep.path(), copied().path(), 0, 9999).unwrap_err().contains("levels"));
}

#[test]
fn file_that_the_user_of_a_share_cannot_read_is_not_copied() {
    let (root, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    if !geteuid().is_root() {
        return;
    }
    fs::create_dir(root.path().join("d")).unwrap();
    fs::write(root.path().join("d/secret"), "secret").unwrap();
    fs::set_permissions(root.path().join("d/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    // The owner of the file can copy it.
    copy(root.path(), copied.path(), 1 << 20, 100).unwrap();
    let of_user = tempfile::tempdir().unwrap();
    for path in [root.path(), of_user.path()] {
        chown(path, Some(4242), Some(4343)).unwrap();
    }
    let words = copy(root.path(), of_user.path(), 1 << 20, 100).unwrap_err();
    assert!(words.contains("d/secret") && words.contains("ermission"), "{words}");
    // A copy belongs to the user of the share.
    chown(root.path().join("d/secret"), Some(4242), Some(4343)).unwrap();
    let of_user = tempfile::tempdir().unwrap();
    chown(of_user.path(), Some(4242), Some(4343)).unwrap();
    copy(root.path(), of_user.path(), 1 << 20, 100).unwrap();
    for path in ["files", "files/d", "files/d/secret"] {
        let metadata = fs::metadata(of_user.path().join(path)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (4242, 4343), "{path}");
    }
}

/// A copy is in the home of all sandboxes.
#[test]
fn guest_cannot_fill_the_file_system_of_its_copy() {
    let (root, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(root.path().join("f"), "content").unwrap();
    copy(root.path(), copied.path(), 1 << 20, 100).unwrap();
    for (floor, is_full) in [(0, false), (u64::MAX, true)] {
        let mut guest = Guest::of(copied.path(), &format!("copied:0:0:{floor}"));
        let file = guest.look_up(ROOT, "f").unwrap().node;
        let opened = guest.open(file, libc::O_RDWR).unwrap();
        let expected = if is_full { Err(ENOSPC) } else { Ok(()) };
        assert_eq!(guest.write(file, opened, 0, b"x").map(drop), expected);
        let made = guest.create(ROOT, &format!("made-{floor}"), libc::O_RDWR, 0o600);
        assert_eq!(made.map(drop), expected);
    }
    // What is there can still be removed.
    let mut guest = Guest::of(copied.path(), &format!("copied:0:0:{}", u64::MAX));
    assert!(guest.ask(10, ROOT, &fields!["f"]).is_ok());
}

/// One request can ask for more than is free above the floor.
#[test]
fn guest_cannot_reserve_what_has_to_stay_free() {
    const RESERVED: u64 = 256 << 20;
    let (root, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(root.path().join("f"), "content").unwrap();
    copy(root.path(), copied.path(), 1 << 20, 100).unwrap();
    let room = rustix::fs::statvfs(copied.path()).unwrap();
    // Other programs may take the rest meanwhile, and do not give back so much.
    let floor = room.f_bavail * room.f_frsize - RESERVED / 4;
    for (floor, expected) in [(floor, Err(ENOSPC)), (0, Ok(()))] {
        let mut guest = Guest::of(copied.path(), &format!("copied:0:0:{floor}"));
        let file = guest.look_up(ROOT, "f").unwrap().node;
        let opened = guest.open(file, libc::O_RDWR).unwrap();
        let mut fallocate = |mode: i32| guest.ask(43, file, &fields![opened, 0_u64, RESERVED, mode as u32, 0_u32]);
        assert_eq!(fallocate(libc::FALLOC_FL_KEEP_SIZE).map(drop), expected, "floor {floor}");
        // Space can be given back in any case.
        fallocate(libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE).unwrap();
    }
}
