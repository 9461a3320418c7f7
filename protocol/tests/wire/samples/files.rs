//! A sample of each request about files, and of each reply to one.

use super::{Named, path, text};
use sandboxvm_protocol::{
    agent::{details::*, files::*, mounts::*, share::*, workspace::*},
    machine::{DiskNumber, SlotNumber},
};

pub(super) fn file_operations() -> [(&'static str, bool, FileOperation); 22] {
    let a = || path("/home/user/a");
    [
        ("stat", false, FileOperation::Stat { path: a(), follow: true }),
        ("list", true, FileOperation::List { path: path("relative"), depth: 3 }),
        ("read", false, FileOperation::Read { path: a() }),
        ("write", false, FileOperation::Write { path: a(), mode: Some(0o600), parents: true }),
        ("make-directory", false, FileOperation::MakeDirectory { path: a(), mode: None, must_be_new: true }),
        ("move", false, FileOperation::Move { from: a(), to: path("/b") }),
        ("remove", false, FileOperation::Remove { path: a(), recursive: true }),
        ("set-mode", false, FileOperation::SetMode { path: a(), mode: 0o4755, recursive: false }),
        ("set-owner", false, FileOperation::SetOwner { path: a(), owner: text("1000:50"), recursive: true }),
        ("watch", false, FileOperation::Watch { path: a(), recursive: true }),
        ("archive", false, FileOperation::Archive { path: a(), name: path("."), follow: false }),
        ("extract", true, FileOperation::Extract { path: a(), create: true, keep_owner: false }),
        ("describe", false, FileOperation::Describe { path: a() }),
        ("list-details", true, FileOperation::ListDetails { path: path("relative"), depth: 3 }),
        (
            "write-with-metadata",
            false,
            FileOperation::WriteWithMetadata { path: a(), mode: None, parents: true, metadata: metadata() },
        ),
        ("observe", true, FileOperation::Observe { path: a(), recursive: false, details: true, network: false }),
        ("pack-changes", false, FileOperation::PackChanges),
        ("extract-below-mounts", false, FileOperation::ExtractBelowMounts),
        ("mount-workspace", false, FileOperation::MountWorkspace(mount())),
        ("pack-workspace", false, FileOperation::PackWorkspace { lowest: SlotNumber::FIRST }),
        ("mount", false, FileOperation::Mount(mount_table())),
        ("mount-share", false, FileOperation::MountShare(share())),
    ]
}

fn mount() -> WorkspaceMount {
    WorkspaceMount { slots: SlotNumber::all().take(2).collect(), at: path("/workspace"), uid: 1000, gid: 50 }
}

fn share() -> ShareMount {
    let number = ShareNumber::try_from(3).expect("a valid sample");
    ShareMount { number, at: path("/data"), is_directory: true, read_only: false }
}

fn mount_table() -> MountTable {
    let disk = |number: u8| DiskNumber::try_from(number).expect("a valid sample");
    let sources = [
        ("/data", MountedSource::Volume { disk: disk(3), read_only: false }),
        ("/models", MountedSource::Volume { disk: disk(4), read_only: true }),
        ("/scratch", MountedSource::Tmpfs { size: Some(1 << 26), mode: 0o1777, exec: true }),
        ("/tmp", MountedSource::Tmpfs { size: None, mode: 0o700, exec: false }),
    ];
    let mounts = sources.into_iter().map(|(at, source)| Mount { at: path(at), source }).collect();
    MountTable { mounts, read_only_root: true }
}

fn file_entry(kind: FileKind) -> FileEntry {
    FileEntry {
        path: path("/home/user/a"),
        kind,
        size: 1 << 33,
        mode: 0o4755,
        uid: 1000,
        gid: 50,
        owner: "user".to_owned(),
        group: "staff".to_owned(),
        modified: FileTime { seconds: -1, nanoseconds: 999_999_999 },
        link_target: (kind == FileKind::Symlink).then(|| path("../b")),
    }
}

fn metadata() -> FileMetadata {
    let mut metadata = FileMetadata::default();
    for (key, value) in [("author", "me"), ("empty", "")] {
        metadata.insert(key.to_owned(), value.to_owned()).expect("a valid sample");
    }
    metadata
}

/// Details of a file with metadata, of a link to a directory, and of a broken link.
fn file_details() -> [FileDetails; 3] {
    let link = |found| FileDetails {
        entry: file_entry(FileKind::Symlink),
        target: Some(LinkTarget { path: path("/home/b"), found }),
        metadata: FileMetadata::default(),
    };
    let file = FileDetails { entry: file_entry(FileKind::File), target: None, metadata: metadata() };
    [file, link(Some(FoundTarget { kind: FileKind::Directory, mode: 0o755 })), link(None)]
}

pub(super) fn file_replies() -> Vec<(String, FileReply, Vec<&'static str>)> {
    use FileErrorKind::*;
    let kinds = [
        FileKind::File,
        FileKind::Directory,
        FileKind::Symlink,
        FileKind::Fifo,
        FileKind::Socket,
        FileKind::CharacterDevice,
        FileKind::BlockDevice,
    ];
    let changes = [
        ChangeKind::Created,
        ChangeKind::Written,
        ChangeKind::Removed,
        ChangeKind::Renamed,
        ChangeKind::AttributesChanged,
        ChangeKind::Missed,
    ];
    let change = |kind| FileChange { kind, path: (kind != ChangeKind::Missed).then(|| path("sub/a")) };
    let mut replies = vec![
        ("begun".to_owned(), FileReply::Begun(None), vec![]),
        ("begun-entry".to_owned(), FileReply::Begun(Some(file_entry(FileKind::File))), vec![]),
        ("entry".to_owned(), FileReply::Entry(file_entry(FileKind::Symlink)), vec![]),
        (
            "entries".to_owned(),
            FileReply::Entries(kinds.map(file_entry).to_vec()),
            kinds.iter().map(Named::variant).collect(),
        ),
        (
            "changes".to_owned(),
            FileReply::Changes(changes.map(change).to_vec()),
            changes.iter().map(Named::variant).collect(),
        ),
        (
            "done".to_owned(),
            FileReply::Done(FileTotals { entries: 3, bytes: 1 << 40, left_out: 1, attributes_lost: 2 }),
            vec![],
        ),
    ];
    let [file, link, _] = file_details();
    let observation = |details| Observation { change: change(ChangeKind::Written), details };
    replies.extend([
        ("details".to_owned(), FileReply::Details(file.clone()), vec![]),
        ("details-of-link".to_owned(), FileReply::Details(link), vec![]),
        ("details-page".to_owned(), FileReply::DetailsPage(file_details().to_vec()), vec![]),
        (
            "observed".to_owned(),
            FileReply::Observed(vec![observation(None), observation(Some(Box::new(file)))]),
            vec![],
        ),
    ]);
    for kind in [
        NotFound,
        AlreadyExists,
        IsADirectory,
        NotADirectory,
        NotEmpty,
        PermissionDenied,
        NoSpace,
        ReadOnly,
        NotAFile,
        NoSuchUser,
        BadPath,
        BadArchive,
        Resources,
        BadRequest,
        Other,
        NetworkMount,
    ] {
        let errno = (kind == NotFound).then_some(2);
        let path = errno.map(|_| path("/home/user/a"));
        let failure = FileFailure { kind, errno, path, message: "cannot open it".to_owned() };
        replies.push((format!("failed-{kind:?}"), FileReply::Failed(failure), vec![kind.variant()]));
    }
    replies
}
