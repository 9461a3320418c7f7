//! Finds the processes of this host that use a path: with an open file, as their program, or in
//! their arguments.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// A process that uses a path, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelatedProcess {
    /// Its process ID.
    pub pid: u32,
    /// Its command line, for messages.
    pub command: String,
    /// How it uses the path.
    pub evidence: String,
}

/// Returns all other processes with an open file, mapping, working directory, executable or
/// argument below `path`.
#[must_use]
pub fn that_hold(path: &Path) -> Vec<RelatedProcess> {
    let own = std::process::id();
    let everybody = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    everybody
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| relation(pid, path))
        .collect()
}

fn relation(pid: u32, path: &Path) -> Option<RelatedProcess> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let arguments = fs::read(proc.join("cmdline")).ok()?;
    let found = |evidence: String| {
        let command = String::from_utf8_lossy(&arguments).replace('\0', " ");
        Some(RelatedProcess { pid, command, evidence })
    };
    let needle = path.as_os_str().as_bytes();
    let names_it = |text: &[u8]| text.windows(needle.len()).any(|window| window == needle);
    for link in ["exe", "cwd", "root"] {
        if let Ok(target) = fs::read_link(proc.join(link))
            && names_it(target.as_os_str().as_bytes())
        {
            return found(format!("{link} is {}", target.display()));
        }
    }
    // A descriptor may be closed between listing and reading. Then the process no longer uses the
    // file.
    for entry in fs::read_dir(proc.join("fd")).into_iter().flatten().flatten() {
        if let Ok(target) = fs::read_link(entry.path())
            && names_it(target.as_os_str().as_bytes())
        {
            return found(format!("fd {} is {}", entry.file_name().display(), target.display()));
        }
    }
    if names_it(&fs::read(proc.join("maps")).unwrap_or_default()) {
        return found("it maps a file below the path".to_owned());
    }
    if names_it(&arguments) {
        return found("its command line names it".to_owned());
    }
    // A VMM that has closed its files is still found by the environment that it inherited.
    if names_it(&fs::read(proc.join("environ")).unwrap_or_default()) {
        return found("its environment names it".to_owned());
    }
    None
}

/// Returns true while the process exists and is not a zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

/// Returns the open descriptors of a process.
#[must_use]
pub fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process exists").flatten();
    let mut targets: Vec<String> =
        entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect();
    targets.sort();
    targets
}

/// Returns true while the process has a file of this directory open, with any name or without one.
#[must_use]
pub fn writes_in(pid: u32, directory: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| target.parent() == Some(directory))
}

/// Returns the children of a process, from all of its threads.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Returns the processes in a control group. Kernel threads are left out: where the processor translates guest memory, KVM
/// starts one for each machine ("kvm-nx-lpage-recovery"), in the group of its VMM.
#[must_use]
pub fn in_group(group: &Path) -> Vec<u32> {
    let members = fs::read_to_string(group.join("cgroup.procs")).expect("a control group");
    let numbers = members.lines().map(|line| line.parse().expect("the number of a process"));
    numbers.filter(|pid| !is_kernel_thread(*pid)).collect()
}

/// True for a thread of the kernel (proc_pid_stat(5), `flags`).
fn is_kernel_thread(pid: u32) -> bool {
    /// `PF_KTHREAD` (linux/sched.h).
    const KERNEL_THREAD: u64 = 0x0020_0000;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

/// Returns the processor time of a process so far, with that of the kernel for it.
#[must_use]
pub fn cpu_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_task = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    tasks.filter_map(of_task).sum()
}

/// Returns the number of threads of a process.
#[must_use]
pub fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).expect("the process exists").count()
}

/// Sends SIGKILL to a process that the test knows to be its own.
pub fn kill(pid: u32) {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a PID");
    let descriptor = pidfd_open(raw, PidfdFlags::empty()).expect("the process exists");
    pidfd_send_signal(&descriptor, Signal::KILL).expect("the process can be killed");
}

/// SIGKILL to a process if it exists and has to do with `path`. Returns whether it was sent.
#[must_use]
pub fn kill_if_it_holds(pid: u32, path: &Path) -> bool {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    // The descriptor first, then the look: what is killed is what was looked at.
    let Ok(descriptor) = pidfd_open(raw, PidfdFlags::empty()) else { return false };
    is_alive(pid) && relation(pid, path).is_some() && pidfd_send_signal(&descriptor, Signal::KILL).is_ok()
}

/// SIGKILL to everything that holds something below `path`. For cleaning up after a failed test: `path` is the test's
/// own temporary directory, so nothing else has business there.
pub fn kill_all_of(path: &Path) {
    for process in that_hold(path) {
        // It may have ended by itself, which is just as well.
        let _ = kill_if_it_holds(process.pid, path);
    }
}
