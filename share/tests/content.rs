//! Requests about files of a volume, by the real process: what hostile clients and guests try with them.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use sandboxvm_share::{
    FILES,
    content::{Answer, Request, SetOwner, Why},
    prepare,
};
use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::symlink, net::UnixStream},
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

const LIMITS: &str = "content:1048576:100";

struct Home {
    directory: TempDir,
    volume: PathBuf,
}

/// A directory with a secret, and a volume below it.
fn home() -> Home {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("secret"), "secret").unwrap();
    let volume = directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    prepare(&volume).unwrap();
    Home { directory, volume }
}

impl Home {
    fn files(&self) -> PathBuf {
        self.volume.join(FILES)
    }

    /// Starts a process for a request, and returns the connection.
    fn begin(&self, request: &Request) -> UnixStream {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let volume = rustix::fs::open(&self.volume, flags, rustix::fs::Mode::empty()).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_sandboxvm-share"))
            .arg(LIMITS)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(volume))
            .spawn()
            .unwrap();
        std::thread::spawn(move || process.wait());
        send(&mut ours, &serde_json::to_vec(request).unwrap());
        ours
    }

    fn ask(&self, request: &Request) -> Answer {
        answer(&mut self.begin(request))
    }

    fn why(&self, request: &Request) -> Why {
        match self.ask(request) {
            Answer::Failed(failure) => failure.why,
            answer => panic!("{request:?}: {answer:?}"),
        }
    }

    fn write(&self, path: &str, pieces: &[&[u8]]) -> Answer {
        let mut stream = self.begin(&write(path));
        for piece in pieces {
            send(&mut stream, piece);
        }
        send(&mut stream, b"");
        answer(&mut stream)
    }
}

fn send(stream: &mut UnixStream, bytes: &[u8]) {
    // The process may have answered and gone.
    let _ = stream.write_all(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
    let _ = stream.write_all(bytes);
}

fn answer(stream: &mut UnixStream) -> Answer {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut json = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut json).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn write(path: &str) -> Request {
    Request::Write { path: path.into(), owner: SetOwner::default(), force: false }
}

/// All requests about a path.
fn all(path: &str) -> Vec<Request> {
    let path = || path.to_owned();
    let owner = SetOwner { mode: Some(0o777), ..SetOwner::default() };
    vec![
        Request::Read { path: path() },
        Request::List { path: path(), depth: 3 },
        Request::Write { path: path(), owner, force: true },
        Request::MakeDirectory { path: path(), owner, force: true },
        Request::SetOwner { path: path(), owner },
    ]
}

#[test]
fn no_path_leads_out_of_a_volume() {
    let home = home();
    let outside = home.directory.path().join("secret");
    symlink(&outside, home.files().join("link")).unwrap();
    symlink(home.directory.path(), home.files().join("up")).unwrap();
    symlink("../..", home.files().join("relative")).unwrap();
    // The attacks work where links are followed.
    for path in ["link", "up/secret", "relative/secret"] {
        assert_eq!(fs::read_to_string(home.files().join(path)).unwrap(), "secret");
    }
    let deep = "a/".repeat(300);
    for path in
        ["link", "up/secret", "relative/secret", "relative", "../usage", "../../secret", "/../../secret", "a\0b", &deep]
    {
        for request in all(path) {
            let why = home.why(&request);
            let exists = why == Why::Exists && matches!(request, Request::MakeDirectory { .. });
            assert!(exists || why == Why::Invalid, "{request:?}: {why:?}");
        }
    }
    for path in ["up/secret", "relative/secret", "../usage"] {
        assert_eq!(home.why(&Request::Remove { path: path.into() }), Why::Invalid);
    }
    // A link itself is removed.
    assert_eq!(home.ask(&Request::Remove { path: "up".into() }), Answer::Done);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "secret");
    assert!(!home.files().join("up").is_symlink());
    // Removing a tree does not follow the links in it.
    fs::create_dir(home.files().join("tree")).unwrap();
    symlink(home.directory.path(), home.files().join("tree/up")).unwrap();
    assert_eq!(home.ask(&Request::Remove { path: "tree".into() }), Answer::Done);
    assert!(outside.exists() && home.volume.join("usage").exists());
}

#[test]
fn devices_and_pipes_are_neither_read_nor_written() {
    let home = home();
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, home.files().join("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for request in [Request::Read { path: "pipe".into() }, write("pipe")] {
        assert_eq!(home.why(&request), Why::Invalid, "{request:?}");
    }
}

#[test]
fn a_body_that_is_cut_or_too_large_changes_nothing() {
    let home = home();
    assert!(matches!(home.write("f", &[b"old"]), Answer::Json { .. }));
    // The client goes away in the middle, or within a piece.
    for bytes in [&b""[..], b"\x03\0\0\0ne"] {
        let mut stream = home.begin(&write("f"));
        send(&mut stream, b"new");
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(matches!(answer(&mut stream), Answer::Failed(_)));
    }
    let piece = vec![1; 512 << 10];
    let Answer::Failed(failure) = home.write("f", &[&piece, &piece, &piece]) else { panic!() };
    assert_eq!(failure.why, Why::NoSpace);
    assert_eq!(fs::read(home.files().join("f")).unwrap(), b"old");
    assert_eq!(fs::read_dir(home.volume.join("nameless")).unwrap().count(), 0);
    // A piece that no client sends ends the request.
    let mut stream = home.begin(&write("f"));
    stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert!(matches!(answer(&mut stream), Answer::Failed(_)));
    // What was given back is free again.
    assert!(matches!(home.write("g", &[&piece]), Answer::Json { .. }));
    assert_eq!(home.ask(&Request::Remove { path: "g".into() }), Answer::Done);
    assert!(matches!(home.write("h", &[&piece, &piece[..400 << 10]]), Answer::Json { .. }));
}

#[test]
fn deep_trees_are_removed_and_names_are_limited() {
    let home = home();
    let mut at = rustix::fs::open(home.files(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    drop(at);
    let owner = SetOwner::default();
    let make = |path: String| Request::MakeDirectory { path, owner, force: true };
    // 3000 names are more than the 100 that there may be.
    assert_eq!(home.why(&make("e".into())), Why::NoSpace);
    assert_eq!(home.ask(&Request::Remove { path: "d".into() }), Answer::Done);
    for number in 0..10 {
        assert!(matches!(home.ask(&make(format!("{number}/a/b/c/d/e/f/g/h"))), Answer::Json { .. }), "{number}");
    }
    assert!(matches!(home.ask(&make((0..10).map(|name| format!("x{name}/")).collect())), Answer::Json { .. }));
    assert_eq!(home.why(&make("y".into())), Why::NoSpace);
}

/// A recursive removal of it ends the program: see the test of the manager.
#[test]
fn what_is_in_a_removed_volume_is_removed_however_deep_and_whether_or_not_it_is_complete() {
    let home = home();
    fs::write(home.volume.join("nameless/1"), "x").unwrap();
    fs::write(home.volume.join("usage"), "damaged").unwrap();
    symlink(home.directory.path(), home.files().join("up")).unwrap();
    let mut at = rustix::fs::open(home.files(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..6000 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    drop(at);
    let clear = || {
        let volume = fs::File::open(&home.volume).unwrap();
        Command::new(env!("CARGO_BIN_EXE_sandboxvm-share"))
            .arg("removal")
            .stdin(Stdio::null())
            .stdout(volume)
            .status()
            .unwrap()
    };
    assert!(clear().success());
    assert_eq!(fs::read_dir(&home.volume).unwrap().count(), 0);
    assert!(home.directory.path().join("secret").exists());
    // Again, and where most of it is missing.
    assert!(clear().success());
}
