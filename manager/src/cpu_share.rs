//! A sandbox's share of the host's processors: a control group of its own for its VMM, with a quota of processor time.
//!
//! The group is below the caller's own, in whichever hierarchy has the `cpu` controller; in version 2, where groups
//! with processes cannot have such below them, it is beside the caller's. Its path is written down in the sandbox's
//! directory before it is made, so that whoever removes the sandbox finds it, also after a kill -9 of anybody; it goes
//! with the sandbox and not with its VMM. Where there is no such hierarchy, or it may not be written to, the sandbox runs
//! without a share and says so.

use crate::{
    directory::{DirectoryError, SandboxDirectory},
    limits::{CpuShare, Unkept},
};
use sandboxvm_protocol::identity::SandboxId;
use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// In a sandbox's directory: the path of its control group.
const GROUP: &str = "cgroup";
const PREFIX: &str = "sandboxvm-";

/// How often processor time is handed out, in microseconds.
const PERIOD_US: u64 = 100_000;

/// A VMM that was killed is in its group until its machine is taken down: some 15 ms.
const EMPTY_WITHIN: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(2);

/// A place where a control group can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parent {
    path: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Has process `vmm` and all that it starts use no more than `share`, if there is one.
pub(crate) fn hold(
    directory: &SandboxDirectory,
    id: &SandboxId,
    share: Option<CpuShare>,
    vmm: u32,
) -> Result<(), DirectoryError> {
    let Some(share) = share else { return Ok(()) };
    let mut reasons = Vec::new();
    for parent in parents() {
        let group = parent.path.join(format!("{PREFIX}{id}"));
        directory.replace(GROUP, group.as_os_str().as_bytes())?;
        match make(&parent, &group, share, vmm) {
            Ok(()) => return Unkept::CpuShare.is_kept(directory),
            Err(error) => {
                let _ = fs::remove_dir(&group);
                reasons.push(format!("{}: {error}", group.display()));
            }
        }
    }
    directory.unlink(GROUP)?;
    let why = match &reasons[..] {
        [] => "this host has no control groups with a `cpu` controller".to_owned(),
        reasons => format!("no control group could be made ({})", reasons.join("; ")),
    };
    let what_to_do = "mount one and allow writing to it, as root or by delegation";
    Unkept::CpuShare.because(directory, &format!("its processor share of {share} is not kept: {why}; {what_to_do}"))
}

/// Takes the control group of a sandbox's directory away, if there is one. False while there is still a process in it.
pub(crate) fn release(directory: &Path) -> bool {
    let Ok(path) = fs::read(directory.join(GROUP)) else { return true };
    let group = PathBuf::from(std::ffi::OsString::from_vec(path));
    let is_ours = group.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()));
    if !is_ours {
        return true;
    }
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        match fs::remove_dir(&group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            // Not there, or not ours to remove: nothing more can be done about it.
            _ => return true,
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
}

/// True when the sandbox in `directory` has a control group.
pub(crate) fn has_group(directory: &SandboxDirectory) -> bool {
    directory.has(GROUP)
}

fn make(parent: &Parent, group: &Path, share: CpuShare, vmm: u32) -> io::Result<()> {
    if parent.version == Version::V2 {
        let has = |file: &str| -> io::Result<bool> {
            Ok(fs::read_to_string(parent.path.join(file))?.split_whitespace().any(|name| name == "cpu"))
        };
        if !has("cgroup.controllers")? {
            return Err(io::Error::other("its parent has no cpu controller to give"));
        }
        if !has("cgroup.subtree_control")? {
            put(&parent.path.join("cgroup.subtree_control"), "+cpu")?;
        }
    }
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let quota = u64::from(share.percent()) * PERIOD_US / 100;
    match parent.version {
        Version::V1 => {
            put(&group.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
            put(&group.join("cpu.cfs_quota_us"), &quota.to_string())?;
        }
        Version::V2 => put(&group.join("cpu.max"), &format!("{quota} {PERIOD_US}"))?,
    }
    put(&group.join("cgroup.procs"), &vmm.to_string())
}

/// Never makes a file: what is not there is not offered by the kernel.
fn put(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Where a group can be made, best first.
fn parents() -> Vec<Parent> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    parents_in(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
}

/// By the kernel's two tables (proc_pid_mountinfo(5), cgroups(7)). A controller is in one hierarchy only, so the order
/// of versions does not matter where both are mounted.
fn parents_in(mounts: &str, own: &str) -> Vec<Parent> {
    let mut parents = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let ([_, _, _, root, at, ..], [kind, _, options, ..]) = (&left[..], &right[..]) else { continue };
        let has_cpu = options.split(',').any(|option| option == "cpu");
        let version = match *kind {
            "cgroup2" => Version::V2,
            "cgroup" if has_cpu => Version::V1,
            _ => continue,
        };
        let Some(path) = own_path(own, version) else { continue };
        // What of the hierarchy is mounted may begin further down, as in a container.
        let Ok(below) = Path::new(path).strip_prefix(root) else { continue };
        let at = unescaped(at);
        let here = at.join(below);
        let beside = (version == Version::V2 && here != at).then(|| here.parent().map(Path::to_owned)).flatten();
        let paths = [Some(here), beside].into_iter().flatten();
        parents.extend(paths.map(|path| Parent { path, version }));
    }
    parents
}

fn own_path(table: &str, version: Version) -> Option<&str> {
    table.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match version {
            Version::V1 => controllers.split(',').any(|name| name == "cpu"),
            Version::V2 => number == "0" && controllers.is_empty(),
        };
        is_it.then_some(path)
    })
}

/// A path as mountinfo has it, with white space and backslashes as octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| std::str::from_utf8(after.get(..3)?).ok()).flatten();
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_with_processor_time_is_found_in_both_versions() {
        let v1 = "25 22 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                  26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
                  27 25 0:24 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";
        let paths = |mounts: &str, own: &str| {
            let all = parents_in(mounts, own).into_iter();
            all.map(|parent| (parent.path.display().to_string(), parent.version)).collect::<Vec<_>>()
        };
        let own = "5:cpuset:/x\n4:cpu,cpuacct:/user/me\n0::/\n";
        assert_eq!(paths(v1, own), [("/sys/fs/cgroup/cpu,cpuacct/user/me".to_owned(), Version::V1)]);
        let v2 = "26 25 0:23 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let beside = [("/sys/fs/cgroup/a/b".to_owned(), Version::V2), ("/sys/fs/cgroup/a".to_owned(), Version::V2)];
        assert_eq!(paths(v2, "0::/a/b\n"), beside);
        assert_eq!(paths(v2, "0::/\n"), [("/sys/fs/cgroup/".to_owned(), Version::V2)]);
        // Only a part of the hierarchy is mounted: what is above it cannot be reached.
        let part = "26 25 0:23 /pod /with\\040space rw - cgroup2 cgroup2 rw\n";
        assert_eq!(paths(part, "0::/pod/me\n")[0].0, "/with space/me");
        assert!(paths(part, "0::/elsewhere\n").is_empty());
        assert!(paths("garbage\n1 2 - 3\n", "x\n::\n").is_empty());
    }

    #[test]
    fn where_none_can_be_made_the_sandbox_says_so() {
        let home = tempfile::tempdir().unwrap();
        // As a version 1 hierarchy looks, but with a file system that offers nothing.
        let parent = Parent { path: home.path().to_owned(), version: Version::V1 };
        let group = home.path().join("sandboxvm-abcdefgh");
        assert!(make(&parent, &group, CpuShare::try_from(50).unwrap(), 1).is_err());
        let v2 = Parent { version: Version::V2, ..parent };
        fs::write(home.path().join("cgroup.controllers"), "memory pids\n").unwrap();
        let error = make(&v2, &group, CpuShare::try_from(50).unwrap(), 1).unwrap_err();
        assert!(error.to_string().contains("no cpu controller"), "{error}");
    }

    #[test]
    fn only_a_group_of_ours_is_ever_removed() {
        let home = tempfile::tempdir().unwrap();
        let innocent = home.path().join("innocent");
        fs::create_dir(&innocent).unwrap();
        fs::write(home.path().join(GROUP), innocent.as_os_str().as_bytes()).unwrap();
        assert!(release(home.path()) && innocent.exists());
        let ours = home.path().join("sandboxvm-abcdefgh");
        fs::create_dir(&ours).unwrap();
        fs::write(home.path().join(GROUP), ours.as_os_str().as_bytes()).unwrap();
        assert!(release(home.path()) && !ours.exists());
        assert!(release(home.path()), "gone already");
    }
}
