//! Attacks of a guest that writes the messages itself.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::*;
use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A share beside a secret.
fn with_secret() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("shared");
    fs::create_dir(&root).unwrap();
    fs::write(directory.path().join("secret"), "secret").unwrap();
    // The attack is on paths, not on permissions.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(directory.path().join("secret"), fs::Permissions::from_mode(0o666)).unwrap();
    (directory, root)
}

#[test]
fn names_that_lead_out_of_the_root_are_refused() {
    let (directory, root) = with_secret();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/f"), "f").unwrap();
    // The attack works on a server that resolves what it receives.
    assert_eq!(fs::read(root.join("../secret")).unwrap(), b"secret");
    let mut guest = Guest::with(&root, "rw");
    for name in ["..", ".", "", "../secret", "d/f", "/", "/etc/passwd", "d/../../secret"] {
        assert_eq!(guest.look_up(ROOT, name).unwrap_err(), EINVAL, "{name:?}");
        assert_eq!(guest.create(ROOT, name, libc::O_RDWR, 0o644).unwrap_err(), EINVAL, "{name:?}");
        assert_eq!(guest.make_directory(ROOT, name, 0o755).unwrap_err(), EINVAL, "{name:?}");
        assert_eq!(guest.symlink(ROOT, name, "x").unwrap_err(), EINVAL, "{name:?}");
        assert_eq!(guest.unlink(ROOT, name).unwrap_err(), EINVAL, "{name:?}");
        assert_eq!(guest.rename((ROOT, "d"), (ROOT, name), 0).unwrap_err(), EINVAL, "{name:?}");
        assert_eq!(guest.rename((ROOT, name), (ROOT, "x"), 0).unwrap_err(), EINVAL, "{name:?}");
    }
    // Bytes after the NUL of the last name, and a name without one.
    assert_eq!(guest.ask(1, ROOT, b"d\0/../../secret\0").unwrap_err(), EINVAL);
    assert_eq!(guest.ask(1, ROOT, b"d").unwrap_err(), EINVAL);
    assert_eq!(fs::read(directory.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn links_of_the_guest_are_never_followed_on_the_host() {
    let (directory, root) = with_secret();
    let secret = directory.path().join("secret");
    let mut guest = Guest::with(&root, "rw");
    for (name, target) in [("up", ".."), ("absolute", directory.path().to_str().unwrap()), ("proc", "/proc/self/root")]
    {
        guest.symlink(ROOT, name, target).unwrap();
    }
    guest.symlink(ROOT, "file", "../secret").unwrap();
    // The attack works on a server that follows links.
    assert_eq!(fs::read(root.join("up/secret")).unwrap(), b"secret");
    for name in ["up", "absolute", "proc"] {
        let link = guest.look_up(ROOT, name).unwrap().node;
        // ENOTDIR, since names are looked up in directories only.
        assert_eq!(guest.look_up(link, "secret").unwrap_err(), -20, "{name}");
        assert_eq!(guest.create(link, "made", libc::O_RDWR, 0o644).unwrap_err(), -20, "{name}");
        assert!(guest.ask(27, link, &fields![0u32, 0u32]).is_err(), "{name}");
    }
    let link = guest.look_up(ROOT, "file").unwrap().node;
    assert!(guest.open(link, libc::O_RDONLY).is_err());
    assert!(guest.set(link, 8, 0, 0, 0).is_err(), "truncated through a link");
    assert!(guest.set(link, 1, 0, 0o777, 0).is_err(), "changed the mode through a link");
    guest.set(link, 16 | 32, 0, 0, 0).unwrap();
    let (opened, _) = (guest.create(ROOT, "file", libc::O_RDWR, 0o644), ());
    assert!(opened.is_err(), "opened through a link: {opened:?}");
    let metadata = fs::metadata(&secret).unwrap();
    assert_eq!((fs::read(&secret).unwrap(), metadata.mode() & 0o777), (b"secret".to_vec(), 0o666));
    assert_ne!(metadata.mtime(), 2000);
    // A hard link of a link is one, too.
    let hard = guest.link(link, ROOT, "hard").unwrap();
    assert_eq!(hard.mode & 0o170_000, 0o120_000);
}

#[test]
fn links_that_appear_during_a_lookup_are_not_followed() {
    let (_directory, root) = with_secret();
    fs::create_dir(root.join("real")).unwrap();
    fs::write(root.join("real/secret"), "harmless").unwrap();
    symlink("..", root.join("link")).unwrap();
    let mut guest = Guest::with(&root, "rw");
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        // The host, or another thread of the guest, exchanges a directory and a link all the time.
        scope.spawn(|| {
            let (a, b) = (root.join("real"), root.join("link"));
            while !ends.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, exchange).unwrap();
            }
        });
        let until = Instant::now() + Duration::from_secs(2);
        let mut followed = false;
        while !followed && Instant::now() < until {
            // The attack works on a server that checks a path and then opens it.
            let path = root.join("real");
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                followed = fs::read(path.join("secret")).is_ok_and(|content| content == b"secret");
            }
        }
        let mut opened = Vec::new();
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            opened.extend(guest.content("real/secret"));
        }
        ends.store(true, Ordering::Relaxed);
        assert!(opened.iter().all(|content| content == b"harmless"));
        let opened = opened.len();
        assert!(opened > 10, "{opened}");
        assert!(followed, "the race was never won without the protection");
    });
}

#[test]
fn devices_and_privileges_do_not_reach_the_host() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    let mut guest = Guest::with(root.path(), "rw");
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFIFO, libc::S_IFSOCK, 0] {
        assert_eq!(guest.make_node(ROOT, "node", kind | 0o666).unwrap_err(), EPERM, "{kind:o}");
    }
    assert!(!at("node").exists());
    guest.make_node(ROOT, "node", FILE | 0o6755).unwrap();
    let (file, _) = guest.create(ROOT, "file", libc::O_RDWR, 0o6755).unwrap();
    guest.make_directory(ROOT, "directory", 0o6755).unwrap();
    for name in ["node", "file", "directory"] {
        let mode = fs::metadata(at(name)).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o755, "{name}");
    }
    assert_eq!(guest.set(file.node, 1, 0, 0o4755, 0).unwrap_err(), EPERM);
    assert_eq!(guest.set(file.node, 1, 0, 0o2755, 0).unwrap_err(), EPERM);
    assert_eq!(guest.set(file.node, 2 | 4, 0, 0, 1234).unwrap_err(), EPERM);
    guest.set(file.node, 2 | 4, 0, 0, 0).unwrap();
    // What the host has is not shown, and a named pipe of the host blocks nothing.
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(guest.attributes(file.node).unwrap().1, FILE | 0o755);
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    let pipe = guest.look_up(ROOT, "pipe").unwrap();
    assert_eq!(guest.open(pipe.node, libc::O_WRONLY).unwrap_err(), EOPNOTSUPP);
    assert!(guest.create(ROOT, "pipe", libc::O_WRONLY, 0o644).is_err());
    // A program of the host that reads the pipe waits until another opens it for writing.
    let (path, is_open) = (root.path().join("pipe"), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            fs::File::open(&path).unwrap();
            is_open.store(true, Ordering::Relaxed);
        });
        thread::sleep(Duration::from_millis(200));
        assert_eq!(guest.create(ROOT, "pipe", libc::O_RDWR, 0o644).unwrap_err(), EEXIST);
        thread::sleep(Duration::from_millis(200));
        let was_open = is_open.load(Ordering::Relaxed);
        let _ =
            fs::OpenOptions::new().read(true).write(true).open(&path).map(|_| thread::sleep(Duration::from_millis(50)));
        assert!(!was_open, "the guest's request opened the pipe");
    });
}

#[test]
fn handles_are_limited_and_the_process_keeps_serving() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("f"), "content").unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let file = guest.walk("f").unwrap().node;
    let mut handles = Vec::new();
    let refused = loop {
        match guest.open(file, libc::O_RDONLY) {
            Ok(handle) => handles.push(handle),
            Err(error) => break error,
        }
        assert!(handles.len() < 10_000, "no limit");
    };
    assert_eq!(refused, ENFILE);
    assert_eq!(guest.ask(27, ROOT, &fields![0u32, 0u32]).unwrap_err(), ENFILE);
    assert_eq!(guest.attributes(file).unwrap().0, 7);
    guest.release(file, handles[0]).unwrap();
    guest.open(file, libc::O_RDONLY).unwrap();
}

#[test]
fn nodes_beyond_the_open_ones_are_found_again() {
    let root = tempfile::tempdir().unwrap();
    // More than the process may have open: half of its descriptors.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(16_384);
    many(root.path(), 2000.max(limit.min(16_384) / 2 + 500));
}

fn many(root: &std::path::Path, number: u64) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    for file in 0..number {
        fs::write(root.join(format!("a/b/{file}")), format!("{file}")).unwrap();
    }
    let mut guest = Guest::with(root, "rw");
    let directory = guest.walk("a/b").unwrap().node;
    let nodes: Vec<u64> = (0..number).map(|file| guest.look_up(directory, &file.to_string()).unwrap().node).collect();
    for (file, node) in nodes.iter().enumerate().step_by(97) {
        assert_eq!(guest.attributes(*node).unwrap().0, file.to_string().len() as u64);
    }
    // One of the closed ones is replaced on the host.
    fs::write(root.join("a/b/new"), "other").unwrap();
    fs::rename(root.join("a/b/new"), root.join("a/b/3")).unwrap();
    assert_eq!(guest.open(nodes[3], libc::O_RDONLY).unwrap_err(), ESTALE);
    let pid = guest.process.id();
    if rustix::process::geteuid().is_root() {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
        assert!(open < number, "{open}");
    }
    for node in nodes {
        guest.forget(node, 1);
    }
    assert_eq!(guest.attributes(ROOT).unwrap().1 & 0o170_000, DIRECTORY);
}

#[test]
fn directories_that_the_host_moves_out_of_the_root_are_out_of_reach() {
    let (outside, root) = with_secret();
    fs::create_dir_all(root.join("d/below")).unwrap();
    fs::write(root.join("d/f"), "content").unwrap();
    // A process that has the directory open follows it.
    let open = fs::File::open(root.join("d")).unwrap();
    let mut guest = Guest::with(&root, "rw");
    let (directory, below) = (guest.walk("d").unwrap().node, guest.walk("d/below").unwrap().node);
    let file = guest.walk("d/f").unwrap().node;
    let handle = u64_at(&guest.ask(27, directory, &fields![0u32, 0u32]).unwrap(), 0);
    assert_eq!(guest.list(directory, true).unwrap(), [".", "..", "below", "f"]);
    let moved = outside.path().join("moved");
    fs::rename(root.join("d"), &moved).unwrap();
    rustix::fs::mkdirat(&open, "followed", rustix::fs::Mode::RWXU).unwrap();
    assert!(moved.join("followed").exists());
    for node in [directory, below] {
        assert_eq!(guest.create(node, "x", libc::O_RDWR, 0o644).unwrap_err(), ESTALE);
        assert_eq!(guest.make_directory(node, "x", 0o755).unwrap_err(), ESTALE);
        assert_eq!(guest.symlink(node, "x", "x").unwrap_err(), ESTALE);
        assert_eq!(guest.rename((node, "f"), (ROOT, "x"), 0).unwrap_err(), ESTALE);
        assert_eq!(guest.unlink(node, "f").unwrap_err(), ESTALE);
        assert_eq!(guest.look_up(node, "f").unwrap_err(), ESTALE);
        assert_eq!(guest.list(node, true).unwrap_err(), ESTALE);
    }
    let read = fields![handle, 0u64, 1024u32, 0u32, 0u64, 0u32, 0u32];
    assert_eq!(guest.ask(28, directory, &read).unwrap_err(), ESTALE);
    assert_eq!(guest.open(file, libc::O_RDONLY).unwrap_err(), ESTALE);
    assert_eq!(guest.link(file, ROOT, "x").unwrap_err(), ESTALE);
    assert_eq!(guest.set(file, 1, 0, 0o777, 0).unwrap_err(), ESTALE);
    let mut left: Vec<_> = fs::read_dir(&moved).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["below", "f", "followed"]);
    // It comes back.
    fs::rename(&moved, root.join("again")).unwrap();
    assert_eq!(guest.list(directory, false).unwrap(), [".", "..", "below", "f", "followed"]);
}

#[test]
fn numbers_that_were_never_given_out_are_stale() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("f"), "content").unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    let file = guest.walk("f").unwrap().node;
    for node in [0, 2, 3, file + 1, u64::MAX] {
        assert_eq!(guest.attributes(node).unwrap_err(), ESTALE);
        assert_eq!(guest.look_up(node, "f").unwrap_err(), ESTALE);
        assert_eq!(guest.open(node, libc::O_RDONLY).unwrap_err(), ESTALE);
    }
    for handle in [0, 1, u64::MAX] {
        assert_eq!(guest.read(file, handle, 0, 10).unwrap_err(), ESTALE);
    }
    // Of a process before this one, too.
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    drop(guest);
    let mut guest = Guest::with(root.path(), "rw");
    assert_eq!(guest.attributes(file).unwrap_err(), ESTALE);
    assert_eq!(guest.read(file, handle, 0, 10).unwrap_err(), ESTALE);
    // Forgetting too much is harmless.
    let file = guest.walk("f").unwrap().node;
    guest.forget(file, u64::MAX);
    guest.forget(ROOT, u64::MAX);
    // It has no answer, and another thread may be the first.
    let until = Instant::now() + Duration::from_secs(10);
    while guest.attributes(file) != Err(ESTALE) {
        assert!(Instant::now() < until, "not forgotten");
    }
    assert_eq!(guest.content("f").unwrap(), b"content");
}

#[test]
fn messages_that_no_kernel_sends_are_refused_or_end_the_connection() {
    let root = tempfile::tempdir().unwrap();
    let mut guest = Guest::with(root.path(), "rw");
    for code in [0, 7, 19, 37, 39, 40, 47, 48, 49, 50, 99, u32::MAX] {
        assert_eq!(guest.ask(code, ROOT, &[0; 64]).unwrap_err(), ENOSYS, "{code}");
    }
    // A body that is too short, or too long by a byte.
    for code in [3, 4, 8, 9, 12, 13, 14, 15, 16, 18, 20, 21, 22, 27, 28, 35, 43, 44, 45, 46] {
        assert_eq!(guest.ask(code, ROOT, &[]).unwrap_err(), EINVAL, "{code}");
    }
    assert_eq!(guest.ask(3, ROOT, &[0; 17]).unwrap_err(), EINVAL);
    // Sizes that do not match, or are too large.
    assert_eq!(guest.ask(16, ROOT, &fields![0u64, 0u64, 9u32, 0u32, 0u64, 0u32, 0u32, &b"x"[..]]).unwrap_err(), EINVAL);
    assert_eq!(guest.read(ROOT, 0, 0, u32::MAX).unwrap_err(), EINVAL);
    for length in [0u32, 1, 39, (132 << 10) + 1, u32::MAX] {
        let mut guest = Guest::started(root.path(), "rw:0:0", Stdio::null());
        guest.send(&fields![length, 26u32, 2u64, 0u64, 0u32, 0u32, 0u32, 0u32]);
        assert_eq!(guest.stream.read(&mut [0]).unwrap(), 0, "{length}");
        assert_eq!(guest.process.wait().unwrap().code(), Some(125), "{length}");
    }
    // In the middle of a message.
    let mut cut = Guest::started(root.path(), "rw:0:0", Stdio::null());
    cut.send(&[60, 0, 0, 0, 1]);
    cut.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(cut.process.wait().unwrap().code(), Some(125));
    assert!(guest.attributes(ROOT).is_ok());
}
