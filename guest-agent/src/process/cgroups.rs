//! The control groups that the sandbox's processes are in, and how many they may be.
//!
//! ```text
//! /sys/fs/cgroup            the agent and what it has working on files: no limit of the sandbox's is theirs
//!   sandbox                 everything a host has started, and all that came of it: pids.max is the sandbox's limit
//!   reserve                 what a host starts when that is reached, so that a user can still look into the sandbox
//! ```
//! Only `pids` is switched on: with the memory controller every page fault would be charged, which is dear where the
//! guest's kernel is interpreted, and needless, since all of the machine's memory is the sandbox's. When that runs out,
//! the kernel's OOM killer takes the largest process, and never PID 1 (mm/oom_kill.c, `oom_unkillable_task`).
//!
//! Root in the guest may rearrange all of this. Nothing here counts on what it made being there still: what cannot be
//! limited any more is said on the console, and runs.

use rustix::fs::{Mode, OFlags, mkdir, open, openat};
use rustix::io::{Errno, pwrite, write};
use rustix::system::sysinfo;
use sandboxvm_protocol::agent::limits::ProcessCount;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const ROOT: &str = "/sys/fs/cgroup";
const SANDBOX: &str = "/sys/fs/cgroup/sandbox";
const RESERVE: &str = "/sys/fs/cgroup/reserve";
const THREADS_MAX: &str = "/proc/sys/kernel/threads-max";

/// What a thread takes, as the kernel reckons when it sets `threads-max` at boot: eight times its stack (kernel/fork.c,
/// `set_max_threads`).
const MEMORY_OF_THREAD: u64 = 8 * 16 * 1024;

/// Threads that the machine has beside the sandbox's: the kernel's own, and the agent.
const OTHER_THREADS: u32 = 256;

/// A control group that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} the control group {path}: {errno}; is CONFIG_CGROUP_PIDS in the guest kernel's configuration?")]
pub(crate) struct CgroupError {
    step: &'static str,
    path: &'static str,
    errno: Errno,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cgroups {
    sandbox: OwnedFd,
    reserve: OwnedFd,
    /// pids.max of `sandbox`, kept open: opening it is the dearer part of a change.
    limit: OwnedFd,
    /// What was written there last.
    processes: Option<ProcessCount>,
}

impl Cgroups {
    /// Makes them. They have no limit yet.
    pub(crate) fn make() -> Result<Self, CgroupError> {
        let root = directory(ROOT)?;
        put(&root, "cgroup.subtree_control", "+pids").map_err(fail("give controllers to", ROOT))?;
        let (sandbox, reserve) = (make_directory(SANDBOX)?, make_directory(RESERVE)?);
        put(&reserve, "pids.max", &ProcessCount::RESERVE.to_string()).map_err(fail("limit", RESERVE))?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let limit = openat(&sandbox, "pids.max", flags, Mode::empty()).map_err(fail("limit", SANDBOX))?;
        Ok(Self { sandbox, reserve, limit, processes: None })
    }

    /// Where the processes of hosts belong.
    pub(super) fn sandbox(&self) -> BorrowedFd<'_> {
        self.sandbox.as_fd()
    }

    /// Where they go when that is full.
    pub(super) fn reserve(&self) -> BorrowedFd<'_> {
        self.reserve.as_fd()
    }

    /// Lets the sandbox have `processes` from here on. Those that are too many already run on.
    pub(crate) fn limit(&mut self, processes: ProcessCount) {
        if self.processes == Some(processes) {
            return;
        }
        if let Err(error) = self.try_limit(processes) {
            eprintln!("sandboxvm-agent: limits: the number of processes stays as it is: {error}");
        }
    }

    fn try_limit(&mut self, processes: ProcessCount) -> Result<(), CgroupError> {
        let text = processes.to_string();
        match pwrite(&self.limit, text.as_bytes(), 0) {
            // Removed by the guest's root.
            Err(Errno::NODEV) => {
                *self = Self::make()?;
                pwrite(&self.limit, text.as_bytes(), 0)
            }
            written => written,
        }
        .map_err(fail("limit", SANDBOX))?;
        self.processes = Some(processes);
        allow_threads(processes).map_err(fail("have the kernel allow as many threads as", SANDBOX))
    }
}

/// Raises the kernel's own limit, which depends on the machine's memory, well above the sandbox's: at the kernel's limit the
/// agent could start nothing either.
fn allow_threads(processes: ProcessCount) -> Result<(), Errno> {
    let memory = sysinfo();
    let by_memory = memory.totalram.saturating_mul(u64::from(memory.mem_unit)) / MEMORY_OF_THREAD;
    let wanted = processes.get() + ProcessCount::RESERVE + OTHER_THREADS;
    if u64::from(wanted) <= by_memory {
        return Ok(());
    }
    let file = open(THREADS_MAX, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write(&file, wanted.to_string().as_bytes()).map(drop)
}

fn fail(step: &'static str, path: &'static str) -> impl FnOnce(Errno) -> CgroupError {
    move |errno| CgroupError { step, path, errno }
}

fn directory(path: &'static str) -> Result<OwnedFd, CgroupError> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(fail("open", path))
}

fn make_directory(path: &'static str) -> Result<OwnedFd, CgroupError> {
    match mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => directory(path),
        Err(errno) => Err(fail("make", path)(errno)),
    }
}

fn put(directory: impl AsFd, name: &str, text: &str) -> Result<(), Errno> {
    let file = openat(directory, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write(&file, text.as_bytes()).map(drop)
}
