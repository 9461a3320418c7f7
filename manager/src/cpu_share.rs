//! A sandbox's share of the host's processors: a control group of its own for its VMM, with a quota of processor time. Since
//! its VMM is moved into a group anyhow, which costs up to a grace period, that group, or those beside it in version 1, also
//! bound its memory and processes where the controllers are to be had: what a taken-over VMM and all it forks off could take.
//!
//! The group is below the caller's own, in whichever hierarchy has the `cpu` controller; in version 2, where groups
//! with processes cannot have such below them, it is beside the caller's. Its path is written down in the sandbox's
//! directory before it is made, so that whoever removes the sandbox finds it, also after a kill -9 of anybody; it goes
//! with the sandbox and not with its VMM. Where there is no such hierarchy, or it may not be written to, the sandbox runs
//! without a share and says so.

use crate::{
    directory::{DirectoryError, SandboxDirectory},
    limits::{CpuShare, Unkept},
    record::SandboxRecord,
};
use sandboxvm_protocol::machine::{MIB, MemorySize};
use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// In a sandbox's directory: the path of its control group.
const GROUP: &str = "cgroup";
const PREFIX: &str = "sandboxvm-";

/// Processes and threads of a VMM with its writers, and of forks until they are in groups of their own.
const PROCESSES: u64 = 512;
/// What a VMM takes beside guest memory.
const OVERHEAD: u64 = 512 * MIB;

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

/// Has process `vmm` and all that it starts use no more than the sandbox's share, if it has one.
pub(crate) fn hold(directory: &SandboxDirectory, record: &SandboxRecord, vmm: u32) -> Result<(), DirectoryError> {
    let Some(share) = record.limits.cpu_share else { return Ok(()) };
    let mut reasons = Vec::new();
    for parent in parents("cpu") {
        let mut groups = Groups::below(directory, format!("{PREFIX}{}", record.id));
        match groups.join(&parent, "cpu", &cpu_settings(parent.version, share), vmm)? {
            Ok(()) => {
                groups.bound(&parent, record.memory_bytes, vmm)?;
                return Unkept::CpuShare.is_kept(directory);
            }
            Err(error) => {
                let group = groups.leave();
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

/// Files of a control group, and what to write into them.
type Settings = Vec<(&'static str, String)>;

fn cpu_settings(version: Version, share: CpuShare) -> Settings {
    let quota = u64::from(share.percent()) * PERIOD_US / 100;
    match version {
        Version::V1 => {
            vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
        }
        Version::V2 => vec![("cpu.max", format!("{quota} {PERIOD_US}"))],
    }
}

/// While a snapshot is written, what the guest rewrites exists twice.
fn memory_settings(version: Version, memory: MemorySize) -> Settings {
    let file = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    vec![(file, (2 * memory.bytes() + OVERHEAD).to_string())]
}

/// The control groups of one sandbox. Each is written down before it is made.
struct Groups<'a> {
    directory: &'a SandboxDirectory,
    name: String,
    paths: Vec<PathBuf>,
}

impl<'a> Groups<'a> {
    fn below(directory: &'a SandboxDirectory, name: String) -> Self {
        Self { directory, name, paths: Vec::new() }
    }

    /// Moves `vmm` into a group below `parent`, with these settings of `controller`.
    fn join(
        &mut self,
        parent: &Parent,
        controller: &str,
        settings: &Settings,
        vmm: u32,
    ) -> Result<io::Result<()>, DirectoryError> {
        let group = parent.path.join(&self.name);
        if !self.paths.contains(&group) {
            self.paths.push(group.clone());
            let list: Vec<&[u8]> = self.paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
            self.directory.replace(GROUP, &list.join(&b'\n'))?;
        }
        Ok(make(parent, &group, controller, settings, vmm))
    }

    /// Bounds memory and processes too, where that can be had: nobody asked for it in so many words.
    fn bound(&mut self, cpu: &Parent, memory: MemorySize, vmm: u32) -> Result<(), DirectoryError> {
        for controller in ["memory", "pids"] {
            let settings = |version| match controller {
                "memory" => memory_settings(version, memory),
                _ => vec![("pids.max", PROCESSES.to_string())],
            };
            let own = parents(controller).into_iter().find(|parent| parent.version == Version::V1);
            let parent = own.unwrap_or_else(|| cpu.clone());
            // A group without the controller bounds nothing, and does no harm.
            let _ = self.join(&parent, controller, &settings(parent.version), vmm)?;
        }
        Ok(())
    }

    /// Takes the last one away again.
    fn leave(&self) -> PathBuf {
        let last = self.paths.last().cloned().unwrap_or_default();
        let _ = fs::remove_dir(&last);
        last
    }
}

/// Takes the control group of a sandbox's directory away, if there is one. False while there is still a process in it.
pub(crate) fn release(directory: &Path) -> bool {
    let Ok(paths) = fs::read(directory.join(GROUP)) else { return true };
    let mut all_gone = true;
    for path in paths.split(|byte| *byte == b'\n') {
        all_gone &= remove(Path::new(OsStr::from_bytes(path)));
    }
    all_gone
}

fn remove(group: &Path) -> bool {
    let is_ours = group.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()));
    if !is_ours {
        return true;
    }
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        match fs::remove_dir(group) {
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

fn make(parent: &Parent, group: &Path, controller: &str, settings: &Settings, vmm: u32) -> io::Result<()> {
    if parent.version == Version::V2 {
        let has = |file: &str| -> io::Result<bool> {
            Ok(fs::read_to_string(parent.path.join(file))?.split_whitespace().any(|name| name == controller))
        };
        if !has("cgroup.controllers")? {
            return Err(io::Error::other(format!("its parent has no {controller} controller to give")));
        }
        if !has("cgroup.subtree_control")? {
            put(&parent.path.join("cgroup.subtree_control"), &format!("+{controller}"))?;
        }
    }
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for (file, text) in settings {
        put(&group.join(file), text)?;
    }
    put(&group.join("cgroup.procs"), &vmm.to_string())
}

/// Never makes a file: what is not there is not offered by the kernel.
fn put(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Where a group can be made that may have `controller`, best first.
fn parents(controller: &str) -> Vec<Parent> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    parents_in(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), controller)
}

/// By the kernel's two tables (proc_pid_mountinfo(5), cgroups(7)). A controller is in one hierarchy only, so the order
/// of versions does not matter where both are mounted.
fn parents_in(mounts: &str, own: &str, controller: &str) -> Vec<Parent> {
    let mut parents = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let ([_, _, _, root, at, ..], [kind, _, options, ..]) = (&left[..], &right[..]) else { continue };
        let has_it = options.split(',').any(|option| option == controller);
        let version = match *kind {
            "cgroup2" => Version::V2,
            "cgroup" if has_it => Version::V1,
            _ => continue,
        };
        let Some(path) = own_path(own, version, controller) else { continue };
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

fn own_path<'t>(table: &'t str, version: Version, controller: &str) -> Option<&'t str> {
    table.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match version {
            Version::V1 => controllers.split(',').any(|name| name == controller),
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
            let all = parents_in(mounts, own, "cpu").into_iter();
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
        let settings = |version| cpu_settings(version, CpuShare::try_from(50).unwrap());
        assert!(make(&parent, &group, "cpu", &settings(Version::V1), 1).is_err());
        let v2 = Parent { version: Version::V2, ..parent };
        fs::write(home.path().join("cgroup.controllers"), "memory pids\n").unwrap();
        let error = make(&v2, &group, "cpu", &settings(Version::V2), 1).unwrap_err();
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
        let beside = home.path().join("x").join("sandboxvm-abcdefgh");
        fs::create_dir_all(&beside).unwrap();
        let list = format!("{}\n{}\n{}", ours.display(), innocent.display(), beside.display());
        fs::write(home.path().join(GROUP), list).unwrap();
        assert!(release(home.path()) && !ours.exists() && !beside.exists() && innocent.exists());
        assert!(release(home.path()), "gone already");
    }
}
