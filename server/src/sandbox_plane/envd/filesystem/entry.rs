//! Files as clients are told of them. What the guest says of them is its word, and told as such.

use jiff::Timestamp;
use sandboxvm_manager::permissions;
use sandboxvm_protocol::agent::files::{FileEntry, FileKind, FilePath, FileTime};
use serde::Serialize;

/// `filesystem.EntryInfo`.
#[derive(Debug, Serialize)]
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
    is_symlink: bool,
}

impl From<&FileEntry> for EntryInfo {
    fn from(entry: &FileEntry) -> Self {
        let path = text(&entry.path);
        Self {
            name: name(&path).to_owned(),
            kind: match entry.kind {
                FileKind::File => "FILE_TYPE_FILE",
                FileKind::Directory => "FILE_TYPE_DIRECTORY",
                FileKind::Symlink => "FILE_TYPE_SYMLINK",
                FileKind::Fifo | FileKind::Socket | FileKind::CharacterDevice | FileKind::BlockDevice => {
                    "FILE_TYPE_UNSPECIFIED"
                }
            },
            path,
            size: entry.size.min(i64::MAX as u64).to_string(),
            mode: entry.mode & 0o7777,
            permissions: permissions(entry),
            owner: entry.owner.clone(),
            group: entry.group.clone(),
            modified_time: time(entry.modified),
            symlink_target: entry
                .link_target
                .as_ref()
                .map(|target| String::from_utf8_lossy(target.as_bytes()).into_owned()),
            is_symlink: entry.kind == FileKind::Symlink,
        }
    }
}

/// A path as text, without what names no part of it; what is no UTF-8 is shown as such. `..` stays: what it leads to is for
/// the guest's links to say.
pub(crate) fn text(path: &FilePath) -> String {
    let text = String::from_utf8_lossy(path.as_bytes());
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let root = if text.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
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
    use serde_json::json;

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
    fn an_entry_is_told_as_clients_read_it() {
        let expected = json!({
            "name": "a.txt", "type": "FILE_TYPE_FILE", "path": "/home/user/a.txt", "size": "5", "mode": 420,
            "permissions": "-rw-r--r--", "owner": "user", "group": "user",
            "modifiedTime": "2023-11-14T22:13:20.005Z", "isSymlink": false,
        });
        assert_eq!(serde_json::to_value(EntryInfo::from(&entry())).unwrap(), expected);
        let link = FileEntry {
            kind: FileKind::Symlink,
            link_target: Some(FilePath::try_from("/etc/passwd").unwrap()),
            ..entry()
        };
        let link = serde_json::to_value(EntryInfo::from(&link)).unwrap();
        assert_eq!((&link["symlinkTarget"], &link["isSymlink"]), (&json!("/etc/passwd"), &json!(true)));
    }

    #[test]
    fn what_a_hostile_guest_says_is_still_an_entry() {
        let odd = FileEntry {
            path: FilePath::try_from(vec![b'/', 0xff, b'\n']).unwrap(),
            size: u64::MAX,
            mode: u32::MAX,
            modified: FileTime { seconds: i64::MAX, nanoseconds: u32::MAX },
            ..entry()
        };
        let odd = serde_json::to_value(EntryInfo::from(&odd)).unwrap();
        assert_eq!((&odd["size"], &odd["mode"]), (&json!(i64::MAX.to_string()), &json!(0o7777)));
        assert!(odd.get("modifiedTime").is_none());
        for seconds in [-62_135_596_801, 253_402_300_800, i64::MIN] {
            assert_eq!(time(FileTime { seconds, nanoseconds: 0 }), None);
        }
        let shown = |path: &str| text(&FilePath::try_from(path).unwrap());
        assert_eq!(
            (shown("/home/user/./a//b/."), shown("a/./b"), shown("/.")),
            ("/home/user/a/b".into(), "a/b".into(), "/".into())
        );
        assert_eq!((name("/"), name("/a/"), name("a")), ("/", "a", "a"));
    }
}
