//! A volume as hostile guests see it: what it may contain, and owners of its files.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::*;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Pid, Signal, geteuid, kill_process},
};
use sandboxvm_share::{FILES, Root, Server, Volume, boot};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    thread,
};
use tempfile::TempDir;

const ENOSPC: i32 = -28;
const PAGE: u64 = 4096;

fn volume() -> TempDir {
    let volume = tempfile::tempdir().unwrap();
    for directory in [FILES, "nameless"] {
        fs::create_dir(volume.path().join(directory)).unwrap();
    }
    volume
}

fn guest(volume: &TempDir, pages: u64, names: u64) -> Guest {
    Guest::of(volume.path(), &format!("volume:{}:{names}", pages * PAGE))
}

/// Returns the number of pages and names that are free.
fn free(guest: &mut Guest) -> (u64, u64) {
    let answer = guest.ask(17, ROOT, &[]).unwrap();
    (u64_at(&answer, 16), u64_at(&answer, 32))
}

/// Bytes that the files of a volume take on the disk.
fn on_disk(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries.map(|entry| entry.metadata().unwrap().blocks() * 512).sum()
}

fn allocate(guest: &mut Guest, node: u64, handle: u64, end: u64, mode: u32) -> Result<Vec<u8>, i32> {
    guest.ask(43, node, &fields![handle, 0u64, end, mode, 0u32])
}

#[test]
fn no_request_makes_a_volume_larger_than_it_may_be() {
    let directory = volume();
    let mut guest = guest(&directory, 64, 100);
    let (file, handle) = guest.create(ROOT, "f", libc::O_RDWR, 0o644).unwrap();
    let page = [1; PAGE as usize];
    assert_eq!(free(&mut guest), (63, 99));
    for number in 0..63 {
        guest.write(file.node, handle, number * PAGE, &page).unwrap();
    }
    assert_eq!(free(&mut guest), (0, 99));
    let end = 63 * PAGE;
    for (attack, outcome) in [
        ("write", guest.write(file.node, handle, end, &page).map(drop)),
        ("sparse", guest.write(file.node, handle, 1 << 40, &[1]).map(drop)),
        ("truncate", guest.set(file.node, 1 << 3, end + 1, 0, 0).map(drop)),
        ("allocate", allocate(&mut guest, file.node, handle, end + 1, 0).map(drop)),
        ("another file", guest.create(ROOT, "g", libc::O_RDWR, 0o644).map(drop)),
        ("directory", guest.make_directory(ROOT, "d", 0o755).map(drop)),
        ("link", guest.link(file.node, ROOT, "l").map(drop)),
        ("symbolic link", guest.symlink(ROOT, "s", "target").map(drop)),
    ] {
        assert_eq!(outcome, Err(ENOSPC), "{attack}");
    }
    // Space behind the end of a file would not count, and attributes neither.
    assert_eq!(allocate(&mut guest, file.node, handle, 1 << 20, 1).map(drop), Err(EOPNOTSUPP));
    let attribute = fields![3u32, 0u32, "user.a", &b"abc"[..]];
    assert_eq!(guest.ask(21, file.node, &attribute).map(drop), Err(EOPNOTSUPP));
    // The host appends, whatever offset the guest states.
    let appending = guest.open(file.node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    assert_eq!(guest.write(file.node, appending, 0, &page), Err(ENOSPC));
    assert!(on_disk(&directory.path().join(FILES)) <= 64 * PAGE);
    // What does not grow works in a full volume.
    guest.write(file.node, handle, 0, &page).unwrap();
    guest.set(file.node, 1 << 3, PAGE, 0, 0).unwrap();
    assert_eq!(free(&mut guest).0, 62);
}

#[test]
fn names_are_limited_and_links_are_names() {
    let directory = volume();
    let mut guest = guest(&directory, 1000, 3);
    let (file, handle) = guest.create(ROOT, "f", libc::O_RDWR, 0o644).unwrap();
    guest.release(file.node, handle).unwrap();
    guest.link(file.node, ROOT, "g").unwrap();
    guest.symlink(ROOT, "s", "f").unwrap();
    assert_eq!(guest.link(file.node, ROOT, "h").map(drop), Err(ENOSPC));
    assert_eq!(guest.make_directory(ROOT, "d", 0o755).map(drop), Err(ENOSPC));
    // Both names of a link stay when one is renamed over the other.
    guest.rename((ROOT, "f"), (ROOT, "g"), 0).unwrap();
    assert_eq!(free(&mut guest).1, 0);
    guest.unlink(ROOT, "s").unwrap();
    guest.unlink(ROOT, "f").unwrap();
    assert_eq!(free(&mut guest), (999, 2));
    guest.create(ROOT, "h", libc::O_RDWR, 0o644).unwrap();
    // The one that is replaced does not count any more.
    guest.rename((ROOT, "h"), (ROOT, "g"), 0).unwrap();
    assert_eq!(free(&mut guest).1, 2);
}

/// Without a place for files without a name, each turn would take another 60 pages of the host.
#[test]
fn files_that_are_open_count_after_they_are_removed_by_any_process() {
    let directory = volume();
    let (mut one, mut other) = (guest(&directory, 100, 10), guest(&directory, 100, 10));
    let (file, handle) = one.create(ROOT, "f", libc::O_RDWR, 0o644).unwrap();
    one.set(file.node, 1 << 3, 60 * PAGE, 0, 0).unwrap();
    let of_other = other.look_up(ROOT, "f").unwrap().node;
    let handle_of_other = other.open(of_other, libc::O_RDWR).unwrap();
    one.unlink(ROOT, "f").unwrap();
    one.release(file.node, handle).unwrap();
    assert_eq!(free(&mut one).0, 39);
    let (second, second_handle) = one.create(ROOT, "f", libc::O_RDWR, 0o644).unwrap();
    assert_eq!(one.set(second.node, 1 << 3, 60 * PAGE, 0, 0), Err(ENOSPC));
    // It works until it is closed.
    other.write(of_other, handle_of_other, 0, b"works").unwrap();
    other.release(of_other, handle_of_other).unwrap();
    assert_eq!(free(&mut one), (99, 9));
    // Also if a name is taken over by a rename.
    one.set(second.node, 1 << 3, 60 * PAGE, 0, 0).unwrap();
    one.create(ROOT, "g", libc::O_RDWR, 0o644).unwrap();
    one.rename((ROOT, "g"), (ROOT, "f"), 0).unwrap();
    assert_eq!(free(&mut one), (38, 8));
    one.release(second.node, second_handle).unwrap();
    assert_eq!(free(&mut one), (99, 9));
    // What a process that was killed had open is removed by the next one.
    let (third, _) = other.create(ROOT, "h", libc::O_RDWR, 0o644).unwrap();
    other.set(third.node, 1 << 3, 10 * PAGE, 0, 0).unwrap();
    other.unlink(ROOT, "h").unwrap();
    assert_eq!(free(&mut one), (88, 8));
    drop(other);
    drop(guest(&directory, 100, 10));
    assert_eq!(free(&mut one), (99, 9));
    assert_eq!(fs::read_dir(directory.path().join("nameless")).unwrap().count(), 0);
}

#[test]
fn a_volume_is_counted_again_after_a_process_was_killed_during_a_change() {
    let directory = volume();
    let files = directory.path().join(FILES);
    fs::create_dir_all(files.join("a/b")).unwrap();
    fs::write(files.join("a/b/f"), [1; 5000]).unwrap();
    fs::hard_link(files.join("a/b/f"), files.join("g")).unwrap();
    // Four names, of which two are one file of two pages.
    let mut first = guest(&directory, 100, 10);
    assert_eq!(free(&mut first), (94, 6));
    let usage = directory.path().join("usage");
    let mut bytes = fs::read(&usage).unwrap();
    fs::write(files.join("h"), "x").unwrap();
    // What is exact is believed.
    assert_eq!(free(&mut first), (94, 6));
    *bytes.last_mut().unwrap() = 1;
    fs::write(&usage, &bytes).unwrap();
    assert_eq!(free(&mut first), (92, 5));
    // Killed at any moment of a change, a process never leaves less than there is.
    for round in 0..20 {
        let mut other = guest(&directory, 100, 10);
        let (file, handle) = other.create(ROOT, "k", libc::O_RDWR, 0o644).unwrap();
        for number in 0..round {
            let write =
                other.request(16, file.node, &fields![handle, number * PAGE, 1u32, 0u32, 0u64, 0u32, 0u32, &b"x"[..]]);
            other.send(&write);
        }
        kill_process(Pid::from_child(&other.process), Signal::KILL).unwrap();
        drop(other);
        let pages = fs::metadata(files.join("k")).unwrap().len().div_ceil(PAGE);
        assert_eq!(free(&mut first), (91 - pages, 4), "{round}");
        first.unlink(ROOT, "k").unwrap();
    }
}

#[test]
fn owners_and_permissions_are_those_that_guests_set_and_never_those_of_the_host() {
    let directory = volume();
    let mut first = guest(&directory, 100, 10);
    // The requests of these tests come from user 1000.
    let (file, handle) = first.create(ROOT, "f", libc::O_RDWR, 0o4751).unwrap();
    assert_eq!((file.uid, file.mode & 0o7777), (1000, 0o751));
    first.set(file.node, 1, 0, 0o000, 0).unwrap();
    first.set(file.node, 1 << 1 | 1 << 2, 0, 0, 0).unwrap();
    assert_eq!(first.set(file.node, 1, 0, 0o4755, 0), Err(EPERM));
    let made = first.make_directory(ROOT, "d", 0o000).unwrap();
    assert_eq!((made.uid, made.mode & 0o7777), (1000, 0));
    first.create(made.node, "in", libc::O_RDWR, 0o400).unwrap();
    first.write(file.node, handle, 0, b"x").unwrap();
    // Each process of the volume sees the same, and a mode keeps none of them from counting.
    let mut second = guest(&directory, 100, 10);
    let seen = second.look_up(ROOT, "f").unwrap();
    assert_eq!((seen.uid, seen.mode & 0o7777), (0, 0));
    assert_eq!(second.content("f").unwrap(), b"x");
    assert_eq!(second.walk("d/in").unwrap().mode & 0o7777, 0o400);
    let executable = |guest: &mut Guest, node| guest.ask(34, node, &fields![1u32, 0u32]).map(drop);
    assert_eq!(executable(&mut second, seen.node), Err(-13));
    second.set(seen.node, 1, 0, 0o111, 0).unwrap();
    assert_eq!(executable(&mut second, seen.node), Ok(()));
    for (path, mode) in [("f", 0o600), ("d", 0o700), ("d/in", 0o600)] {
        let metadata = fs::metadata(directory.path().join(FILES).join(path)).unwrap();
        assert_eq!(
            (metadata.permissions().mode() & 0o7777, metadata.uid()),
            (mode, rustix::process::geteuid().as_raw()),
            "{path}"
        );
    }
    // The attribute with the owner is not for guests.
    let name = fields![4096u32, 0u32, "user.sandboxvm.owner"];
    assert_eq!(second.ask(22, seen.node, &name).map(drop), Err(ENODATA));
    assert_eq!(second.ask(23, seen.node, &fields![4096u32, 0u32]).unwrap(), b"");
    assert_eq!(second.ask(24, seen.node, &fields!["user.sandboxvm.owner"]).map(drop), Err(EOPNOTSUPP));
    let link = second.symlink(ROOT, "l", "f").unwrap();
    assert_eq!((link.uid, second.set(link.node, 1 << 1, 0, 0, 7)), (0, Err(EPERM)));
}

/// The same requests to a share, whose guest chooses what it takes of the disk.
#[test]
fn attacks_on_a_limit_work_without_one() {
    let directory = volume();
    let mut guest = Guest::with(&directory.path().join(FILES), "rw");
    let (file, handle) = guest.create(ROOT, "f", libc::O_RDWR, 0o644).unwrap();
    guest.set(file.node, 1 << 3, 1 << 30, 0, 0).unwrap();
    allocate(&mut guest, file.node, handle, 1 << 20, 0).unwrap();
    for number in 0..20 {
        guest.link(file.node, ROOT, &format!("l{number}")).unwrap();
    }
    assert!(on_disk(&directory.path().join(FILES)) >= 1 << 20);
}

/// A handle of a record has no lock, so that a file without a name would not count while it is open.
#[test]
fn a_volume_takes_no_record_of_nodes_and_handles() {
    let directory = volume();
    let mut share = Guest::with(&directory.path().join(FILES), "rw");
    share.create(ROOT, "f", libc::O_RDWR, 0o644).unwrap();
    let record = share.save();
    let mut of_volume = guest(&directory, 64, 10);
    for part in &record {
        assert_eq!(of_volume.ask(RESTORE, 0, part).map(drop), Err(EOPNOTSUPP));
    }
    assert_eq!(of_volume.ask(SAVE, 0, &fields![0u32, 0u32, 0u64]).map(drop), Err(EOPNOTSUPP));
    // The same record is taken by a share.
    Guest::with(&directory.path().join(FILES), "rw").restore(&record);
}

/// The number of levels from which on a tree cannot be counted.
#[test]
fn a_tree_that_cannot_be_counted_is_full_until_it_is_removed() {
    let directory = volume();
    let files = directory.path().join(FILES);
    let mut at = rustix::fs::open(&files, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..4097 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    drop(at);
    // Of a process that was killed while it made a file: it is neither counted nor kept.
    fs::write(directory.path().join("nameless/new"), "x").unwrap();
    let mut guest = guest(&directory, 10_000, 10_000);
    assert_eq!(free(&mut guest), (0, 0));
    assert_eq!(guest.symlink(ROOT, "s", "target").map(drop), Err(ENOSPC));
    // One level less can be counted.
    let moved = files.join("moved");
    fs::rename(files.join("d/d"), &moved).unwrap();
    guest.symlink(ROOT, "s", "target").unwrap();
    assert_eq!(free(&mut guest), (10_000 - 4098, 10_000 - 4098));
    assert_eq!(fs::read_dir(directory.path().join("nameless")).unwrap().count(), 0);
}

#[test]
fn deep_trees_are_counted() {
    let directory = volume();
    let files = directory.path().join(FILES);
    let limits = sandboxvm_share::Limits { bytes: 1 << 40, names: 1 << 20 };
    let mut at = rustix::fs::open(&files, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..300 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    let volume = Volume::open(directory.path(), limits, boot()).unwrap();
    let server = Server::of_volume(Root::open(&files).unwrap(), volume);
    drop(server);
    let mut guest = guest(&directory, 1000, 1000);
    assert_eq!(free(&mut guest), (700, 700));
}

/// A removed file is kept under another name while a process uses it, and a full file system has no room for names.
#[test]
fn files_can_be_removed_while_the_disk_of_the_host_is_full() {
    if !geteuid().is_root() {
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    // Namespaces are of a thread.
    thread::scope(|scope| {
        let in_namespace = || {
            // SAFETY: only the mounts of this thread change.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("disk", disk.path(), "tmpfs", MountFlags::empty(), Some(c"nr_inodes=40,size=8m")).unwrap();
            let volume = disk.path().join("volume");
            for directory in [FILES, "nameless"] {
                fs::create_dir_all(volume.join(directory)).unwrap();
            }
            let mut guest = Guest::of(&volume, &format!("volume:{}:100", 64 * PAGE));
            let [closed, used, replaced] = ["closed", "used", "replaced"].map(|name| {
                let (file, handle) = guest.create(ROOT, name, libc::O_RDWR, 0o644).unwrap();
                guest.write(file.node, handle, 0, b"content").unwrap();
                (file.node, handle)
            });
            for (node, handle) in [closed, replaced] {
                guest.release(node, handle).unwrap();
            }
            assert_eq!(free(&mut guest).0, 58);
            let fill = (0..40).find(|number| fs::write(disk.path().join(number.to_string()), "").is_err());
            assert!(fill.is_some());
            let unlink = |guest: &mut Guest, name: &str| guest.ask(10, ROOT, &fields![name]).map(drop);
            assert_eq!(unlink(&mut guest, "closed"), Ok(()));
            assert_eq!(guest.look_up(ROOT, "closed").unwrap_err(), ENOENT);
            // Nothing has room: the process of the volume keeps the inode until the guest forgets it.
            assert!(fs::write(disk.path().join("more"), "").is_err());
            // A file that is open cannot lose its name without another one.
            assert_eq!(unlink(&mut guest, "used"), Err(ENOSPC));
            assert_eq!(guest.read(used.0, used.1, 0, 99).unwrap(), b"content");
            assert_eq!(fs::read(volume.join(FILES).join("used")).unwrap(), b"content");
            assert_eq!(unlink(&mut guest, "replaced"), Ok(()));
            // What was removed does not count any more.
            assert_eq!(free(&mut guest).0, 62);
        };
        scope.spawn(in_namespace).join().unwrap();
    });
}
