//! Entries as clients of the content API read them.

use super::path::{Found, VolumePath};
use crate::{
    protocol::Name,
    root::{self, Identity, Root, kind},
    volume::ownership::Ownership,
};
use rustix::{
    fs::{OFlags, Statx, StatxTimestamp, readlinkat},
    io::Errno,
};
use serde::Serialize;
use std::os::fd::OwnedFd;

/// An entry.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    name: String,
    path: String,
    r#type: &'static str,
    size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    atime: String,
    mtime: String,
    ctime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// Opens a regular file or a directory that was found, for reading.
pub(super) fn open(root: &Root, path: &VolumePath, found: &Found) -> Result<OwnedFd, Errno> {
    let Some((above, name)) = path.split() else { return root::open_directory(root.file()) };
    let directory = above.find_directory(root).map_err(|_| Errno::STALE)?;
    open_in(&directory, name, found)
}

/// Opens what was found in a directory, for reading.
fn open_in(directory: &OwnedFd, name: Name<'_>, found: &Found) -> Result<OwnedFd, Errno> {
    root::open(directory, name.bytes(), OFlags::RDONLY, Identity::from(&found.stat))
}

impl Entry {
    /// Describes what was found.
    pub(super) fn of(root: &Root, path: &VolumePath, found: &Found) -> Self {
        Self::described(path, found, || open(root, path, found))
    }

    /// Describes what was found in an open directory. The path is not resolved again: that of a deep entry is long.
    pub(super) fn in_directory(directory: &OwnedFd, name: Name<'_>, path: &VolumePath, found: &Found) -> Self {
        Self::described(path, found, || open_in(directory, name, found))
    }

    fn described(path: &VolumePath, found: &Found, open: impl Fn() -> Result<OwnedFd, Errno>) -> Self {
        let stat = &found.stat;
        let (r#type, file, target) = match kind(stat) {
            libc::S_IFREG => ("file", open().ok(), None),
            libc::S_IFDIR => ("directory", open().ok(), None),
            libc::S_IFLNK => {
                let target = readlinkat(&found.file, c"", Vec::new()).ok();
                ("symlink", None, target.map(|target| target.to_string_lossy().into_owned()))
            }
            _ => ("unknown", None, None),
        };
        let none = Ownership { uid: 0, gid: 0, mode: u32::from(stat.stx_mode) & 0o777 };
        let Ownership { uid, gid, mode } = file.map_or(none, |file| Ownership::of(file, u32::from(stat.stx_mode)));
        let [atime, mtime, ctime] = times(stat);
        let size = if r#type == "directory" { 0 } else { stat.stx_size };
        Self { name: path.name(), path: path.text(), r#type, size, mode, uid, gid, atime, mtime, ctime, target }
    }
}

fn times(stat: &Statx) -> [String; 3] {
    let text = |time: StatxTimestamp| {
        let nanoseconds = i32::try_from(time.tv_nsec).unwrap_or(0);
        jiff::Timestamp::new(time.tv_sec, nanoseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
    };
    [text(stat.stx_atime), text(stat.stx_mtime), text(stat.stx_ctime)]
}
