//! What the process of a share has of the host, seen from outside, and what it does with mounts below its
//! root.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::*;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::geteuid,
};
use sandboxvm_share::{Owner, Root, Server, Settings};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    thread,
};

#[test]
fn only_the_root_is_visible_and_everything_else_is_taken_away() {
    let root = tempfile::tempdir().unwrap();
    let is_root = geteuid().is_root();
    if is_root {
        chown(root.path(), Some(4242), Some(4343)).unwrap();
    }
    fs::write(root.path().join("f"), "content").unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let pid = guest.process.id();
    let status = of_process(pid, "status");
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    if is_root {
        assert!(status.contains("Uid:\t4242\t4242\t4242\t4242") && status.contains("Gid:\t4343\t4343\t4343\t4343"));
        assert!(status.contains("CapBnd:\t0000000000000000") && status.contains("Groups:\t \n"), "{status}");
        // The tests see what the process sees. The host's own files are not there.
        assert!(fs::read_dir("/").unwrap().count() > 5);
        let visible = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
        let visible: Vec<_> = visible.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(visible, ["content"]);
        let (made, _) = guest.create(ROOT, "made", libc::O_RDWR, 0o600).unwrap();
        let metadata = fs::metadata(root.path().join("made")).unwrap();
        assert_eq!((made.uid, metadata.uid(), metadata.gid()), (0, 4242, 4343));
        // Files of others belong to no user of the guest, and their permissions count.
        let of_others = root.path().join("f");
        fs::set_permissions(&of_others, fs::Permissions::from_mode(0o600)).unwrap();
        let file = guest.look_up(ROOT, "f").unwrap();
        assert_eq!((file.uid, guest.open(file.node, libc::O_RDONLY)), (65_534, Err(-13)));
    }
    let mounts = of_process(pid, "mountinfo");
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(mounts.len(), 2, "{mounts:?}");
    for mount in &mounts {
        let is_root_directory = mount[4] == "/";
        assert!(is_root_directory || mount[4] == "/content", "{mount:?}");
        for option in ["nosuid", "nodev", "noexec"] {
            assert!(mount[5].split(',').any(|it| it == option), "{option}: {mount:?}");
        }
        assert_eq!(mount[5].starts_with("ro"), is_root_directory, "{mount:?}");
    }
    // Of a process that is not dumpable, only root may see them.
    let namespaces: &[&str] = if is_root { &["mnt", "net", "ipc", "uts", "cgroup"] } else { &[] };
    for namespace in namespaces {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
}

#[test]
fn read_only_share_is_read_only_for_its_process_too() {
    let root = tempfile::tempdir().unwrap();
    let guest = Guest::with(root.path(), "ro");
    let mounts = of_process(guest.process.id(), "mountinfo");
    let content = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/content")).unwrap();
    assert!(content.split(' ').nth(5).unwrap().starts_with("ro,"), "{content}");
}

#[test]
fn mounts_below_the_root_are_not_followed() {
    if !geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let below = root.path().join("below");
    fs::create_dir(&below).unwrap();
    // Namespaces are of a thread.
    thread::scope(|scope| {
        let in_namespace = || {
            // SAFETY: only the mounts of this thread change.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("below", &below, "tmpfs", MountFlags::empty(), None).unwrap();
            fs::write(below.join("secret"), "secret").unwrap();
            let mut guest = Guest::with(root.path(), "rw");
            // The attack works for a process that has the mounts of the host.
            assert_eq!(fs::read(below.join("secret")).unwrap(), b"secret");
            assert_eq!(guest.walk("below/secret").unwrap_err(), ENOENT);
            // Its mounts are one protection, its lookups are another: here the server has the mounts of the host.
            let settings = Settings { read_only: false, owner: Owner { uid: 0, gid: 0 } };
            let server = Server::new(Root::open(root.path()).unwrap(), settings);
            let request = fields![46u32, 1u32, 2u64, ROOT, 0u32, 0u32, 0u32, 0u32, "below"];
            let error = u64_at(&server.answer(&request).unwrap(), 0) >> 32;
            assert_eq!(error as i32, EXDEV);
            // One that comes later is not there either.
            fs::create_dir(root.path().join("later")).unwrap();
            mount("later", root.path().join("later"), "tmpfs", MountFlags::empty(), None).unwrap();
            fs::write(root.path().join("later/secret"), "secret").unwrap();
            assert_eq!(guest.walk("later/secret").unwrap_err(), ENOENT);
        };
        scope.spawn(in_namespace).join().unwrap();
    });
}
