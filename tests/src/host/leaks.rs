//! Finds what the sandboxes of a home left behind: processes, files, mounts, sockets.

use crate::{
    host::processes,
    seed::{AUDIT, SHARED},
    waiting::eventually,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The list of admitted sandboxes. The manager cleans it up at the next admission.
const ADMITTED: &str = "admitted";

/// Links to control groups that wait for a sandbox.
const GROUPS: &str = "groups";

/// What the operator of the home provides and permits to networks.
const OPERATOR: [&str; 2] = ["operator-own.json", "operator-tenants.json"];

/// The directory of a server.
const SERVER: &str = "server";

/// The directory of container images.
const IMAGES: &str = "images";

/// What builds keep: layers of states, and caches. Clients remove states as snapshots.
const BUILD: &str = "build";

/// The owners of audit logs of removed sandboxes. They stay as long as the logs.
const OWNERS: &str = "gone";

/// How long a VMM may take to end after the request. The kernel needs about 15 ms to remove a virtual
/// machine if the processor is idle.
const TEARDOWN: Duration = Duration::from_secs(20);

/// Asserts that nothing of any sandbox of `home` is left, now or soon.
#[track_caller]
pub fn assert_nothing_left(home: &Path) {
    let clean = eventually(TEARDOWN, || what_is_left(home).is_empty().then_some(()));
    if clean.is_none() {
        panic!("left behind:\n  {}", what_is_left(home).join("\n  "));
    }
}

/// Returns everything that is left, one line each. Files that all sandboxes share do not count.
#[must_use]
pub fn what_is_left(home: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for process in processes::that_hold(home) {
        left.push(format!("process {} ({}): {}", process.pid, process.command, process.evidence));
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let kept = [AUDIT, ADMITTED, GROUPS, BUILD];
        if SHARED.iter().chain(&kept).chain(&OPERATOR).any(|kept| entry.file_name() == *kept) {
            continue;
        }
        if entry.file_name() == SERVER {
            // The server's keys, secret and locks belong to no sandbox, but everything in its
            // directories does.
            for directory in fs::read_dir(entry.path()).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if directory.is_dir() && !directory.ends_with(OWNERS) {
                    files_below(&directory, &mut files);
                }
            }
            continue;
        }
        if entry.file_name() == IMAGES {
            // Images belong to no sandbox, and stay until they are removed. Then nothing of them stays.
            for part in ["blobs/sha256", "disks", "holds", "partial"] {
                files_below(&entry.path().join(part), &mut files);
            }
            continue;
        }
        files_below(&entry.path(), &mut files);
    }
    left.extend(files.iter().map(|path| format!("file {}", path.display())));
    for (what, table) in [("mount", "/proc/self/mountinfo"), ("socket", "/proc/net/unix")] {
        let table = fs::read_to_string(table).expect("/proc is mounted");
        let needle = home.to_string_lossy().into_owned();
        left.extend(table.lines().filter(|line| line.contains(&needle)).map(|line| format!("{what} {line}")));
    }
    left
}

/// Returns every file, and every directory at least two levels deep, which belongs to one sandbox.
fn files_below(top: &Path, into: &mut Vec<PathBuf>) {
    if !top.is_dir() || top.is_symlink() {
        into.push(top.to_owned());
        return;
    }
    into.extend(fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path()));
}
