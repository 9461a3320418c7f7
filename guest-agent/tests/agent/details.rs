//! Details of files beyond stat(2), and watches with details.

use crate::files::{ask, eof, last, path, place, reply};
use crate::host::{Agent, Host};
use sandboxvm_protocol::agent::details::{FileDetails, FileMetadata, FoundTarget, LinkTarget};
use sandboxvm_protocol::agent::files::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

fn describe(agent: &Agent, of: &Path) -> FileDetails {
    match last(ask(agent, FileOperation::Describe { path: path(of) })) {
        FileReply::Details(details) => details,
        other => panic!("expected details, got {other:?}"),
    }
}

fn metadata(pairs: &[(&str, &str)]) -> FileMetadata {
    let mut metadata = FileMetadata::default();
    for (key, value) in pairs {
        metadata.insert((*key).to_owned(), (*value).to_owned()).unwrap();
    }
    metadata
}

/// Writes a file. Returns its details.
fn write(agent: &Agent, to: &Path, content: &[u8], metadata: FileMetadata) -> FileDetails {
    let path = path(to);
    let mut host = ask(agent, FileOperation::WriteWithMetadata { path, mode: None, parents: true, metadata });
    assert_eq!(reply(&mut host), FileReply::Begun(None));
    host.send_stdin(content);
    eof(&mut host);
    match last(host) {
        FileReply::Details(details) => details,
        other => panic!("expected details, got {other:?}"),
    }
}

#[test]
fn a_symbolic_link_is_described_with_its_target() {
    let agent = Agent::start();
    let place = place(&agent);
    fs::create_dir(place.join("real")).unwrap();
    symlink("real", place.join("one")).unwrap();
    symlink("one", place.join("two")).unwrap();
    symlink("none", place.join("nowhere")).unwrap();
    symlink("itself", place.join("itself")).unwrap();
    let real = fs::canonicalize(place.join("real")).unwrap();
    let link = describe(&agent, &place.join("two"));
    assert_eq!((link.entry.kind, link.entry.link_target), (FileKind::Symlink, FilePath::try_from("one").ok()));
    let mode = fs::metadata(&real).unwrap().mode() & 0o7777;
    let found = Some(FoundTarget { kind: FileKind::Directory, mode });
    assert_eq!(link.target, Some(LinkTarget { path: path(&real), found }));
    for name in ["nowhere", "itself"] {
        let link = place.join(name);
        assert_eq!(describe(&agent, &link).target, Some(LinkTarget { path: path(&link), found: None }), "{name}");
    }
    assert_eq!(describe(&agent, &place.join("real")).target, None);

    let mut host = ask(&agent, FileOperation::ListDetails { path: path(&place), depth: 1 });
    let FileReply::DetailsPage(mut page) = reply(&mut host) else { panic!("no page") };
    assert!(matches!(last(host), FileReply::Done(totals) if totals.entries == 5));
    page.sort_by(|one, other| one.entry.path.cmp(&other.entry.path));
    assert_eq!(page[4], describe(&agent, &place.join("two")));
}

#[test]
fn metadata_is_that_of_the_last_write() {
    let agent = Agent::start();
    let file = place(&agent).join("a");
    let given = metadata(&[("author", "me"), ("empty", "")]);
    assert_eq!(write(&agent, &file, b"1", given.clone()).metadata, given);
    assert_eq!(describe(&agent, &file).metadata, given);
    let link = file.with_file_name("link");
    symlink("a", &link).unwrap();
    assert_eq!(describe(&agent, &link).metadata, given, "of a link, that of its target");
    let other = metadata(&[("b", "2")]);
    assert_eq!(write(&agent, &file, b"2", other.clone()).metadata, other);

    // Attributes that programs set and hosts do not accept are omitted, without other effects.
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("user.e2b.binary", b"\xff");
    set("user.other", b"x");
    set("user.e2b.inside", b"y");
    assert_eq!(describe(&agent, &file).metadata, metadata(&[("b", "2"), ("inside", "y")]));
    assert!(write(&agent, &file, b"3", FileMetadata::default()).metadata.is_empty());
}

/// Returns the reported changes with the sizes of the files, up to this change.
fn observed_until(host: &mut Host, kind: ChangeKind, path: &str) -> Vec<(ChangeKind, String, Option<u64>)> {
    let mut all = Vec::new();
    while !all.iter().any(|(told, of, _)| *told == kind && of == path) {
        let FileReply::Observed(observed) = reply(host) else { panic!("no changes") };
        all.extend(observed.into_iter().map(|observed| {
            let path = observed.change.path.map_or_else(Vec::new, |path| path.as_bytes().to_vec());
            let size = observed.details.map(|details| details.entry.size);
            (observed.change.kind, String::from_utf8(path).unwrap(), size)
        }));
    }
    all
}

#[test]
fn a_write_of_a_host_is_reported_as_created_and_written() {
    use ChangeKind::{Created, Removed, Written};
    let agent = Agent::start();
    let place = place(&agent);
    let watch = |details| FileOperation::Observe { path: path(&place), recursive: true, details, network: false };
    let (mut with, mut without) = (ask(&agent, watch(true)), ask(&agent, watch(false)));
    for host in [&mut with, &mut without] {
        assert!(matches!(reply(host), FileReply::Begun(Some(_))));
    }
    write(&agent, &place.join("a"), b"12345", FileMetadata::default());
    write(&agent, &place.join("a"), b"123", FileMetadata::default());
    // A write that was cancelled is never reported.
    let write = FileOperation::Write { path: path(&place.join("never")), mode: None, parents: false };
    let mut host = ask(&agent, write);
    assert_eq!(reply(&mut host), FileReply::Begun(None));
    drop(host);
    crate::host::wait_until("it was given up", || fs::read_dir(&place).unwrap().count() == 1);
    fs::remove_file(place.join("a")).unwrap();
    let kinds = |told: &[(ChangeKind, String, Option<u64>)]| -> Vec<(ChangeKind, String)> {
        told.iter().map(|(kind, path, _)| (*kind, path.clone())).collect()
    };
    let expected = [Created, Written, Written, Removed].map(|kind| (kind, "a".to_owned()));
    let told = observed_until(&mut with, Removed, "a");
    // Two writes in a row are one change until it is reported.
    let mut once = expected.to_vec();
    once.remove(1);
    assert!([&expected[..], &once].contains(&&kinds(&told)[..]), "{told:?}");
    assert!(matches!(told[0].2, Some(5 | 3)) && told.last().unwrap().2.is_none(), "{told:?}");
    let told = observed_until(&mut without, Removed, "a");
    assert!(told.iter().all(|(_, path, size)| path == "a" && size.is_none()), "{told:?}");
}
