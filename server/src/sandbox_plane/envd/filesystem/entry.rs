//! Files as clients read them. All of it is the guest's word, and is passed on unchecked.

use crate::sandbox_plane::envd::connect::text;
use jiff::Timestamp;
use sandboxvm_manager::{FileDetails, FileEntry, FileKind, FileMetadata, FileTime, LinkTarget};
use serde::Serialize;
use std::collections::BTreeMap;

/// `filesystem.EntryInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EntryInfo {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    path: String,
    /// An int64, which is text in proto3's JSON.
    size: String,
    mode: u32,
    permissions: String,
    owner: String,
    group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl From<&FileDetails> for EntryInfo {
    fn from(FileDetails { entry, target, metadata }: &FileDetails) -> Self {
        let path = text(&entry.path);
        // Of a symbolic link, kind and mode are those of what it leads to.
        let (kind, mode) = match target {
            None => (Some(entry.kind), entry.mode),
            Some(LinkTarget { found: Some(found), .. }) => (Some(found.kind), found.mode),
            Some(LinkTarget { found: None, .. }) => (None, 0),
        };
        Self {
            name: name(&path).to_owned(),
            kind: match kind {
                Some(FileKind::File) => "FILE_TYPE_FILE",
                Some(FileKind::Directory) => "FILE_TYPE_DIRECTORY",
                Some(FileKind::Symlink) => "FILE_TYPE_SYMLINK",
                Some(FileKind::Fifo | FileKind::Socket | FileKind::CharacterDevice | FileKind::BlockDevice) | None => {
                    "FILE_TYPE_UNSPECIFIED"
                }
            },
            path,
            size: entry.size.min(i64::MAX as u64).to_string(),
            mode: mode & 0o777,
            permissions: permissions(entry),
            owner: entry.owner.clone(),
            group: entry.group.clone(),
            modified_time: time(entry.modified),
            symlink_target: target.as_ref().map(|target| text(&target.path)).or_else(|| {
                entry.link_target.as_ref().map(|target| String::from_utf8_lossy(target.as_bytes()).into_owned())
            }),
            metadata: pairs(metadata),
        }
    }
}

impl EntryInfo {
    /// What it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let pairs = self.metadata.iter().map(|(key, value)| key.len() + value.len());
        size_of::<Self>()
            + self.name.len()
            + self.path.len()
            + self.symlink_target.as_ref().map_or(0, String::len)
            + pairs.sum::<usize>()
    }
}

/// Metadata as JSON has it.
pub(crate) fn pairs(metadata: &FileMetadata) -> BTreeMap<String, String> {
    metadata.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Kind and mode as Go's `FileMode` shows them, which is what envd says: `L` for a symbolic link, and the letters of the
/// set-user-ID, set-group-ID and sticky bits among those of the kind.
fn permissions(entry: &FileEntry) -> String {
    let kind = match entry.kind {
        FileKind::File => "",
        FileKind::Directory => "d",
        FileKind::Symlink => "L",
        FileKind::Fifo => "p",
        FileKind::Socket => "S",
        FileKind::CharacterDevice | FileKind::BlockDevice => "D",
    };
    let letter = |is_set: bool, letter: char| is_set.then_some(letter);
    let bit = |bit: u32| entry.mode >> bit & 1 == 1;
    let special = [
        letter(bit(11), 'u'),
        letter(bit(10), 'g'),
        letter(entry.kind == FileKind::CharacterDevice, 'c'),
        letter(bit(9), 't'),
    ];
    let mut shown: String = kind.chars().chain(special.into_iter().flatten()).collect();
    if shown.is_empty() {
        shown.push('-');
    }
    shown.extend((0..9).rev().zip("rwxrwxrwx".chars()).map(|(at, letter)| if bit(at) { letter } else { '-' }));
    shown
}

/// The last part of a path.
pub(crate) fn name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/")
}

/// RFC 3339, of years that proto3 knows.
fn time(time: FileTime) -> Option<String> {
    let nanoseconds = i32::try_from(time.nanoseconds).ok()?;
    let timestamp = Timestamp::new(time.seconds, nanoseconds).ok()?;
    (-62_135_596_800..=253_402_300_799).contains(&time.seconds).then(|| timestamp.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{FilePath, FoundTarget};
    use serde_json::{Value, json};

    fn plain(entry: FileEntry) -> FileDetails {
        FileDetails { entry, target: None, metadata: FileMetadata::default() }
    }

    fn shown(details: &FileDetails) -> Value {
        serde_json::to_value(EntryInfo::from(details)).unwrap()
    }

    fn entry() -> FileEntry {
        FileEntry {
            path: FilePath::try_from("/home/user/a.txt").unwrap(),
            kind: FileKind::File,
            size: 5,
            mode: 0o644,
            uid: 1000,
            gid: 1000,
            owner: "user".into(),
            group: "user".into(),
            modified: FileTime { seconds: 1_700_000_000, nanoseconds: 5_000_000 },
            link_target: None,
        }
    }

    #[test]
    fn entries_serialize_as_clients_expect() {
        let expected = json!({
            "name": "a.txt", "type": "FILE_TYPE_FILE", "path": "/home/user/a.txt", "size": "5", "mode": 420,
            "permissions": "-rw-r--r--", "owner": "user", "group": "user",
            "modifiedTime": "2023-11-14T22:13:20.005Z",
        });
        assert_eq!(shown(&plain(entry())), expected);
        let mut metadata = FileMetadata::default();
        metadata.insert("author".into(), "me".into()).unwrap();
        assert_eq!(shown(&FileDetails { metadata, ..plain(entry()) })["metadata"], json!({ "author": "me" }));
    }

    #[test]
    fn symbolic_links_are_shown_as_their_targets() {
        let link = FileEntry {
            kind: FileKind::Symlink,
            mode: 0o777,
            link_target: FilePath::try_from("../etc").ok(),
            ..entry()
        };
        let leads = |found| {
            let target = Some(LinkTarget { path: FilePath::try_from("/etc").unwrap(), found });
            let shown = shown(&FileDetails { target, ..plain(link.clone()) });
            [&shown["type"], &shown["mode"], &shown["permissions"], &shown["symlinkTarget"]].map(Clone::clone)
        };
        let directory = leads(Some(FoundTarget { kind: FileKind::Directory, mode: 0o755 }));
        assert_eq!(directory, [json!("FILE_TYPE_DIRECTORY"), json!(0o755), json!("Lrwxrwxrwx"), json!("/etc")]);
        let nowhere = leads(None);
        assert_eq!(nowhere, [json!("FILE_TYPE_UNSPECIFIED"), json!(0), json!("Lrwxrwxrwx"), json!("/etc")]);
        // An older agent does not say where it leads.
        let old = shown(&plain(link));
        assert_eq!((&old["type"], &old["symlinkTarget"]), (&json!("FILE_TYPE_SYMLINK"), &json!("../etc")));
    }

    #[test]
    fn permissions_are_shown_as_go_shows_them() {
        let of = |kind, mode| permissions(&FileEntry { kind, mode, ..entry() });
        assert_eq!(of(FileKind::File, 0o644), "-rw-r--r--");
        assert_eq!(of(FileKind::Directory, 0o1777), "dtrwxrwxrwx");
        assert_eq!(of(FileKind::File, 0o6755), "ugrwxr-xr-x");
        assert_eq!(of(FileKind::CharacterDevice, 0o600), "Dcrw-------");
        assert_eq!(of(FileKind::Fifo, 0), "p---------");
    }

    #[test]
    fn hostile_file_details_still_make_a_valid_entry() {
        let odd = FileEntry {
            path: FilePath::try_from(vec![b'/', 0xff, b'\n']).unwrap(),
            size: u64::MAX,
            mode: u32::MAX,
            modified: FileTime { seconds: i64::MAX, nanoseconds: u32::MAX },
            ..entry()
        };
        let odd = shown(&plain(odd));
        assert_eq!((&odd["size"], &odd["mode"]), (&json!(i64::MAX.to_string()), &json!(0o777)));
        assert!(odd.get("modifiedTime").is_none());
        for seconds in [-62_135_596_801, 253_402_300_800, i64::MIN] {
            assert_eq!(time(FileTime { seconds, nanoseconds: 0 }), None);
        }
        let normal = |path: &str| text(&FilePath::try_from(path).unwrap());
        assert_eq!(
            (normal("/home/user/./a//b/."), normal("a/./b"), normal("/.")),
            ("/home/user/a/b".into(), "a/b".into(), "/".into())
        );
        assert_eq!((name("/"), name("/a/"), name("a")), ("/", "a", "a"));
    }
}
