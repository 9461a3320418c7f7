//! What a home's sandboxes left behind: processes, files, mounts, sockets.

use crate::{
    processes,
    seed::{AUDIT, SHARED},
    waiting::eventually,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Who was ever admitted to a home: a list that is tidied when it is in somebody's way.
const ADMITTED: &str = "admitted";

/// Links to control groups that wait for a sandbox.
const GROUPS: &str = "groups";

/// What a server keeps.
const SERVER: &str = "server";

/// Whose the audit logs of sandboxes are that are gone: it stays as long as those.
const OWNERS: &str = "gone";

/// How long a VMM that was told to end may take to be gone: tearing KVM down takes some 15 ms.
const TEARDOWN: Duration = Duration::from_secs(2);

/// Fails unless every trace of every sandbox of `home` is gone, at once or soon.
#[track_caller]
pub fn assert_nothing_left(home: &Path) {
    let clean = eventually(TEARDOWN, || what_is_left(home).is_empty().then_some(()));
    if clean.is_none() {
        panic!("left behind:\n  {}", what_is_left(home).join("\n  "));
    }
}

/// Everything that is left, one line each. What all sandboxes share is no trace of one.
#[must_use]
pub fn what_is_left(home: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for process in processes::that_hold(home) {
        left.push(format!("process {} ({}): {}", process.pid, process.command, process.evidence));
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        if SHARED.iter().chain([&AUDIT, &ADMITTED, &GROUPS]).any(|kept| entry.file_name() == *kept) {
            continue;
        }
        if entry.file_name() == SERVER {
            // Its keys, its secret and its locks are no sandbox's; whatever is in its directories is.
            for directory in fs::read_dir(entry.path()).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if directory.is_dir() && !directory.ends_with(OWNERS) {
                    files_below(&directory, &mut files);
                }
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

/// Whatever is not a directory, and every directory that is two levels deep or more (a sandbox's own).
fn files_below(top: &Path, into: &mut Vec<PathBuf>) {
    if !top.is_dir() || top.is_symlink() {
        into.push(top.to_owned());
        return;
    }
    into.extend(fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path()));
}
