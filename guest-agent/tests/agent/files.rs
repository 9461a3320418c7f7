//! Operations on files over the wire.

use crate::host::{Agent, Event, Host, encode, hello, noise, wait_until};
use sandboxvm_protocol::agent::files::*;
use sandboxvm_protocol::agent::{AgentMessage, HostMessage, WIRE};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) fn path(path: &Path) -> FilePath {
    FilePath::try_from(path.to_str().unwrap()).unwrap()
}

/// Opens a connection with one request. Hello and the request are in one packet, as hosts send
/// them.
pub(super) fn ask(agent: &Agent, operation: FileOperation) -> Host {
    let mut host = agent.connect();
    host.send(&[hello(), HostMessage::Files(FileRequest { user: None, operation })]);
    assert_eq!(host.next(), Event::Message(AgentMessage::Hello { version: WIRE.version }));
    host
}

pub(super) fn reply(host: &mut Host) -> FileReply {
    match host.next() {
        Event::Message(AgentMessage::File(reply)) => reply,
        other => panic!("expected a reply about files, got {other:?}"),
    }
}

/// Returns the last reply, after which the connection must be closed.
pub(super) fn last(mut host: Host) -> FileReply {
    let last = reply(&mut host);
    if !matches!(last, FileReply::Failed(_)) {
        assert_eq!(host.next(), Event::Closed);
    }
    last
}

fn entry(agent: &Agent, operation: FileOperation) -> FileEntry {
    match last(ask(agent, operation)) {
        FileReply::Entry(entry) => entry,
        other => panic!("expected an entry, got {other:?}"),
    }
}

fn failure(agent: &Agent, operation: FileOperation) -> FileErrorKind {
    match last(ask(agent, operation)) {
        FileReply::Failed(failure) => failure.kind,
        other => panic!("expected a failure, got {other:?}"),
    }
}

pub(super) fn eof(host: &mut Host) {
    host.send(&[HostMessage::StdinEof]);
}

pub(super) fn place(agent: &Agent) -> PathBuf {
    let place = agent.directory().join("place");
    fs::create_dir(&place).unwrap();
    place
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn children(agent: &Agent) -> usize {
    let pid = agent.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_ascii_whitespace().count()
}

#[test]
fn files_are_written_in_one_step_and_read_back() {
    let agent = Agent::start();
    let file = place(&agent).join("a/b");
    let content = noise(300_000, 5);
    let mut host = ask(&agent, FileOperation::Write { path: path(&file), mode: Some(0o640), parents: true });
    assert_eq!(reply(&mut host), FileReply::Begun(None));
    host.send_stdin(&content);
    assert!(!file.exists(), "the file exists before it is complete");
    eof(&mut host);
    let FileReply::Entry(written) = last(host) else { panic!("no entry") };
    assert_eq!((written.kind, written.size, written.mode), (FileKind::File, 300_000, 0o640));
    assert_eq!(fs::read(&file).unwrap(), content);

    let mut host = ask(&agent, FileOperation::Read { path: path(&file) });
    assert!(matches!(reply(&mut host), FileReply::Begun(Some(entry)) if entry == written));
    let mut read = Vec::new();
    loop {
        match host.next() {
            Event::Stdout(bytes) => read.extend(bytes),
            Event::Message(AgentMessage::File(FileReply::Done(totals))) => {
                assert_eq!((totals.entries, totals.bytes), (1, 300_000));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(host.next(), Event::Closed);
    assert_eq!(read, content);

    // Through a link, with the mode kept. All messages of the request are in one packet.
    let link = file.with_file_name("link");
    symlink("b", &link).unwrap();
    let mut host = agent.connect();
    let operation = FileOperation::Write { path: path(&link), mode: None, parents: false };
    let mut bytes = encode(&[hello(), HostMessage::Files(FileRequest { user: None, operation })]);
    bytes.extend(WIRE.header(sandboxvm_protocol::frame::FrameKind::Stdin, 3).unwrap());
    bytes.extend(b"new");
    bytes.extend(encode(&[HostMessage::StdinEof]));
    host.send_raw(&bytes);
    assert_eq!(host.next(), Event::Message(AgentMessage::Hello { version: WIRE.version }));
    assert_eq!(reply(&mut host), FileReply::Begun(None));
    assert!(matches!(last(host), FileReply::Entry(_)));
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(names(file.parent().unwrap()), ["b", "link"]);
    wait_until("its processes are reaped", || children(&agent) == 0);
}

#[test]
fn an_incomplete_write_changes_nothing() {
    let agent = Agent::start();
    let place = place(&agent);
    fs::write(place.join("a"), "old").unwrap();
    let mut host = ask(&agent, FileOperation::Write { path: path(&place.join("a")), mode: None, parents: false });
    assert_eq!(reply(&mut host), FileReply::Begun(None));
    host.send_stdin(b"half of it");
    wait_until("the file is being written", || names(&place).len() == 2);
    drop(host);
    wait_until("the temporary file is removed", || names(&place) == ["a"]);
    assert_eq!(fs::read(place.join("a")).unwrap(), b"old");

    // Nor do a host that violates the protocol, and one that reads nothing of what it requested.
    let mut host = ask(&agent, FileOperation::Write { path: path(&place.join("a")), mode: None, parents: false });
    assert_eq!(reply(&mut host), FileReply::Begun(None));
    host.send(&[HostMessage::Ping]);
    assert_eq!(host.next(), Event::Closed);
    fs::write(place.join("big"), noise(4 << 20, 1)).unwrap();
    let unread = ask(&agent, FileOperation::Read { path: path(&place.join("big")) });
    assert_eq!(children(&agent), 1, "the process for the file does not wait");
    assert!(agent.answers_ping(), "the agent waits too");
    drop(unread);
    wait_until("all are gone", || children(&agent) == 0 && names(&place) == ["a", "big"]);
    assert_eq!(fs::read(place.join("a")).unwrap(), b"old");
}

#[test]
fn files_are_described_listed_moved_and_removed() {
    let agent = Agent::start();
    let place = place(&agent);
    let at = |name: &str| path(&place.join(name));
    let made = entry(&agent, FileOperation::MakeDirectory { path: at("x/y/z"), mode: Some(0o700), must_be_new: true });
    assert_eq!((made.kind, made.mode, made.owner.as_str()), (FileKind::Directory, 0o700, "root"));
    entry(&agent, FileOperation::MakeDirectory { path: at("x/y/z"), mode: None, must_be_new: false });
    let again = FileOperation::MakeDirectory { path: at("x/y/z"), mode: None, must_be_new: true };
    assert_eq!(failure(&agent, again), FileErrorKind::AlreadyExists);
    fs::write(place.join("x/file"), "12345").unwrap();
    symlink("file", place.join("x/link")).unwrap();

    let link = entry(&agent, FileOperation::Stat { path: at("x/link"), follow: false });
    assert_eq!((link.kind, link.link_target.as_ref().unwrap().as_bytes()), (FileKind::Symlink, &b"file"[..]));
    let file = entry(&agent, FileOperation::Stat { path: at("x/link"), follow: true });
    assert_eq!((file.kind, file.size), (FileKind::File, 5));
    assert_eq!(file.modified.seconds, fs::metadata(place.join("x/file")).unwrap().mtime());

    for index in 0..300 {
        fs::write(place.join(format!("x/y/{index}")), "").unwrap();
    }
    let list = |depth| {
        let mut host = ask(&agent, FileOperation::List { path: at("x"), depth });
        let mut all = Vec::new();
        loop {
            match reply(&mut host) {
                FileReply::Entries(entries) => all.extend(entries),
                FileReply::Done(totals) => {
                    assert_eq!(totals.entries, all.len() as u64);
                    return all;
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let below = |name: &str| at(name);
    let mut one: Vec<_> = list(1).into_iter().map(|entry| entry.path).collect();
    one.sort();
    assert_eq!(one, [below("x/file"), below("x/link"), below("x/y")]);
    assert_eq!((list(0).len(), list(2).len(), list(u32::MAX).len()), (0, 304, 304));

    let moved = entry(&agent, FileOperation::Move { from: at("x/file"), to: at("x/y/file") });
    assert_eq!(moved.path, at("x/y/file"));
    let set = entry(&agent, FileOperation::SetMode { path: at("x"), mode: 0o750, recursive: true });
    assert_eq!(set.mode, 0o750);
    assert_eq!(fs::metadata(place.join("x/y/7")).unwrap().mode() & 0o7777, 0o750);
    let owner = sandboxvm_protocol::agent::CText::try_from("12:34").unwrap();
    let owned = entry(&agent, FileOperation::SetOwner { path: at("x"), owner, recursive: true });
    assert_eq!((owned.uid, owned.gid), (12, 34));
    let link = fs::symlink_metadata(place.join("x/link")).unwrap();
    assert_eq!((link.uid(), link.gid()), (12, 34));

    let refused = FileOperation::Remove { path: at("x"), recursive: false };
    assert_eq!(failure(&agent, refused), FileErrorKind::NotEmpty);
    let FileReply::Done(totals) = last(ask(&agent, FileOperation::Remove { path: at("x"), recursive: true })) else {
        panic!("not removed")
    };
    assert_eq!(totals.entries, 305);
    assert_eq!(names(&place), [""; 0]);
}

#[test]
fn failures_have_a_kind() {
    let agent = Agent::start();
    let place = place(&agent);
    let at = |name: &str| path(&place.join(name));
    fs::write(place.join("file"), "").unwrap();
    fs::create_dir(place.join("dir")).unwrap();
    symlink("nowhere", place.join("dangling")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, place.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let write = |name: &str| FileOperation::Write { path: at(name), mode: None, parents: false };
    let cases = [
        (FileOperation::Stat { path: at("none"), follow: true }, FileErrorKind::NotFound),
        (FileOperation::Read { path: at("none") }, FileErrorKind::NotFound),
        (FileOperation::Read { path: at("dir") }, FileErrorKind::IsADirectory),
        (FileOperation::Read { path: at("fifo") }, FileErrorKind::NotAFile),
        (FileOperation::Read { path: at("file/x") }, FileErrorKind::NotADirectory),
        (FileOperation::List { path: at("file"), depth: 1 }, FileErrorKind::NotADirectory),
        (write("dir"), FileErrorKind::IsADirectory),
        (write("none/x"), FileErrorKind::NotFound),
        (write("dangling"), FileErrorKind::NotFound),
        (write("fifo"), FileErrorKind::NotAFile),
        (
            FileOperation::MakeDirectory { path: at("file"), mode: None, must_be_new: false },
            FileErrorKind::NotADirectory,
        ),
        (FileOperation::Remove { path: at("none"), recursive: true }, FileErrorKind::NotFound),
        (FileOperation::Archive { path: at("fifo"), name: at("x"), follow: false }, FileErrorKind::NotAFile),
        (FileOperation::Extract { path: at("file"), create: false, keep_owner: false }, FileErrorKind::NotADirectory),
        (FileOperation::Stat { path: at(&"n".repeat(300)), follow: true }, FileErrorKind::BadPath),
    ];
    for (operation, kind) in cases {
        // The stream of an archive begins before the tree is read.
        let shown = format!("{operation:?}");
        let mut host = ask(&agent, operation);
        let mut said = reply(&mut host);
        if matches!(said, FileReply::Begun(_)) {
            said = reply(&mut host);
        }
        let FileReply::Failed(failure) = said else { panic!("{shown}: {said:?}") };
        assert_eq!(failure.kind, kind, "{shown}: {failure:?}");
    }
    let user = sandboxvm_protocol::agent::CText::try_from("nobody-here").ok();
    let operation = FileOperation::Stat { path: at("file"), follow: true };
    let mut host = agent.greet();
    host.send(&[HostMessage::Files(FileRequest { user, operation })]);
    assert!(matches!(last(host), FileReply::Failed(failure) if failure.kind == FileErrorKind::NoSuchUser));
}

#[test]
fn requests_have_the_permissions_of_their_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let agent = Agent::start();
    // The directory of the test itself belongs to root.
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(place.path().join("secret"), "x").unwrap();
    fs::set_permissions(place.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let ask_as = |operation| {
        let user = sandboxvm_protocol::agent::CText::try_from("1234:5678").ok();
        let mut host = agent.greet();
        host.send(&[HostMessage::Files(FileRequest { user, operation })]);
        host
    };
    let secret = path(&place.path().join("secret"));
    assert!(matches!(last(ask_as(FileOperation::Read { path: secret })),
        FileReply::Failed(failure) if failure.kind == FileErrorKind::PermissionDenied && failure.errno == Some(13)));
    let own = path(&place.path().join("own"));
    let made = last(ask_as(FileOperation::MakeDirectory { path: own, mode: None, must_be_new: true }));
    assert!(matches!(made, FileReply::Entry(entry) if (entry.uid, entry.gid) == (1234, 5678)));
}

#[test]
fn directory_trees_are_packed_and_unpacked() {
    let agent = Agent::start();
    let place = place(&agent);
    fs::create_dir_all(place.join("from/sub")).unwrap();
    fs::write(place.join("from/sub/a"), noise(200_000, 9)).unwrap();
    symlink("sub/a", place.join("from/link")).unwrap();
    let name = FilePath::try_from("tree").unwrap();
    let mut host = ask(&agent, FileOperation::Archive { path: path(&place.join("from")), name, follow: false });
    assert!(matches!(reply(&mut host), FileReply::Begun(Some(entry)) if entry.kind == FileKind::Directory));
    let mut archive = Vec::new();
    let sent = loop {
        match host.next() {
            Event::Stdout(bytes) => archive.extend(bytes),
            Event::Message(AgentMessage::File(FileReply::Done(totals))) => break totals,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((sent.entries, sent.bytes), (4, 200_000));
    // The padding of tar's last record.
    archive.resize(archive.len().next_multiple_of(10_240), 0);
    let to = path(&place.join("to/here"));
    let mut host = ask(&agent, FileOperation::Extract { path: to, create: true, keep_owner: false });
    assert_eq!(reply(&mut host), FileReply::Begun(None));
    host.send_stdin(&archive);
    eof(&mut host);
    assert_eq!(last(host), FileReply::Done(sent));
    assert_eq!(fs::read(place.join("to/here/tree/link")).unwrap(), noise(200_000, 9));

    let mut host = ask(&agent, FileOperation::Extract { path: path(&place), create: false, keep_owner: false });
    assert_eq!(reply(&mut host), FileReply::Begun(None));
    host.send_stdin(&noise(10_000, 3));
    assert!(matches!(last(host), FileReply::Failed(failure) if failure.kind == FileErrorKind::BadArchive));
}

/// Returns the reported changes, up to this one.
fn changes_until(host: &mut Host, kind: ChangeKind, path: &str) -> Vec<FileChange> {
    let wanted = FileChange { kind, path: FilePath::try_from(path).ok() };
    let mut all = Vec::new();
    while !all.contains(&wanted) {
        match reply(host) {
            FileReply::Changes(changes) => all.extend(changes),
            other => panic!("{other:?}"),
        }
    }
    all
}

#[test]
fn changes_are_reported_also_in_directories_created_later() {
    let agent = Agent::start();
    let place = place(&agent);
    fs::create_dir(place.join("old")).unwrap();
    let mut host = ask(&agent, FileOperation::Watch { path: path(&place), recursive: true });
    assert!(matches!(reply(&mut host), FileReply::Begun(Some(_))));
    fs::write(place.join("old/a"), "x").unwrap();
    changes_until(&mut host, ChangeKind::Written, "old/a");
    fs::create_dir_all(place.join("new/deep")).unwrap();
    changes_until(&mut host, ChangeKind::Created, "new/deep");
    fs::write(place.join("new/deep/b"), "x").unwrap();
    changes_until(&mut host, ChangeKind::Written, "new/deep/b");
    fs::rename(place.join("new"), place.join("moved")).unwrap();
    let told = changes_until(&mut host, ChangeKind::Created, "moved/deep/b");
    assert!(told.iter().any(|change| change.kind == ChangeKind::Renamed));
    fs::set_permissions(place.join("moved/deep/b"), fs::Permissions::from_mode(0o600)).unwrap();
    changes_until(&mut host, ChangeKind::AttributesChanged, "moved/deep/b");
    fs::remove_file(place.join("moved/deep/b")).unwrap();
    changes_until(&mut host, ChangeKind::Removed, "moved/deep/b");
    fs::remove_dir_all(&place).unwrap();
    loop {
        match reply(&mut host) {
            FileReply::Changes(_) => {}
            FileReply::Done(_) => break,
            other => panic!("{other:?}"),
        }
    }

    // The watch ends immediately when the host closes the connection.
    fs::create_dir(&place).unwrap();
    let mut host = ask(&agent, FileOperation::Watch { path: path(&place), recursive: false });
    assert!(matches!(reply(&mut host), FileReply::Begun(Some(_))));
    host.stop_waiting_after(Duration::from_millis(200));
    assert_eq!(host.try_next(), None, "a change was reported although there was none");
    drop(host);
    wait_until("the watch has ended", || children(&agent) == 0);
}

#[test]
fn requests_for_files_are_limited_and_leave_nothing_open() {
    let agent = Agent::start();
    let place = place(&agent);
    let files = agent.open_files();
    let watch = || ask(&agent, FileOperation::Watch { path: path(&place), recursive: false });
    let mut hosts: Vec<Host> = (0..64).map(|_| watch()).collect();
    for host in &mut hosts {
        assert!(matches!(reply(host), FileReply::Begun(Some(_))));
    }
    let mut refused = agent.greet();
    let operation = FileOperation::Stat { path: path(&place), follow: true };
    refused.send(&[HostMessage::Files(FileRequest { user: None, operation: operation.clone() })]);
    assert!(refused.expect_failure().message.contains("under way"));
    drop(hosts);
    wait_until("all have ended", || children(&agent) == 0);
    for _ in 0..50 {
        entry(&agent, operation.clone());
    }
    wait_until("nothing is left open", || agent.open_files() <= files);
}
