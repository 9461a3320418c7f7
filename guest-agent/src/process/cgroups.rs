//! The control groups of the sandbox's processes, which limit their number.
//!
//! ```text
//! /sys/fs/cgroup   the agent and its processes for files, without any limit of the sandbox
//!   sandbox        all processes that a host started, and their children, limited by pids.max
//!     init         an init system and all that it starts, and processes of hosts beside it
//!   reserve        processes that a host starts at that limit, to look into the sandbox
//! ```
//! Only the `pids` controller is enabled. The memory controller would charge every page fault,
//! which is expensive if the guest's kernel is interpreted, and which is not needed: all memory of
//! the machine belongs to the sandbox. When it runs out, the OOM killer kills the largest process,
//! and never PID 1 (mm/oom_kill.c, `oom_unkillable_task`).
//!
//! `init` is the root of the init's control group namespace. It has no controllers: with them, the
//! kernel would count refused processes there and not in `sandbox`. So limits that an init system sets
//! for its services have no effect.
//!
//! Root of the guest may rearrange all of this, so nothing here relies on the groups that it
//! created. If a limit can no longer be set, the agent reports that on the console and continues.

use rustix::fs::{Mode, OFlags, mkdir, open, openat};
use rustix::io::{Errno, pwrite, write};
use rustix::system::sysinfo;
use sandboxvm_protocol::agent::limits::ProcessCount;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const ROOT: &str = "/sys/fs/cgroup";
const SANDBOX: &str = "/sys/fs/cgroup/sandbox";
const INIT: &str = "/sys/fs/cgroup/sandbox/init";
const RESERVE: &str = "/sys/fs/cgroup/reserve";
const THREADS_MAX: &str = "/proc/sys/kernel/threads-max";

/// Memory of a thread, as the kernel calculates it when it sets `threads-max` at boot: eight times
/// its stack (kernel/fork.c, `set_max_threads`).
const MEMORY_OF_THREAD: u64 = 8 * 16 * 1024;

/// Number of threads besides those of the sandbox: those of the kernel, and the agent.
const OTHER_THREADS: u32 = 256;

/// A control group could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} the control group {path}: {errno}; is CONFIG_CGROUP_PIDS in the guest kernel's configuration?")]
pub(crate) struct CgroupError {
    step: &'static str,
    path: &'static str,
    errno: Errno,
}

/// The control groups.
#[derive(Debug)]
pub(crate) struct Cgroups {
    sandbox: OwnedFd,
    reserve: OwnedFd,
    /// pids.max of `sandbox`. It stays open, because opening it is the more expensive part of a
    /// change.
    limit: OwnedFd,
    /// The last limit that was written.
    processes: Option<ProcessCount>,
}

impl Cgroups {
    /// Creates the control groups, without limits.
    pub(crate) fn make() -> Result<Self, CgroupError> {
        let root = directory(ROOT)?;
        put(&root, "cgroup.subtree_control", "+pids").map_err(fail("give controllers to", ROOT))?;
        let (sandbox, reserve) = (make_directory(SANDBOX)?, make_directory(RESERVE)?);
        put(&reserve, "pids.max", &ProcessCount::RESERVE.to_string()).map_err(fail("limit", RESERVE))?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let limit = openat(&sandbox, "pids.max", flags, Mode::empty()).map_err(fail("limit", SANDBOX))?;
        Ok(Self { sandbox, reserve, limit, processes: None })
    }

    /// Returns the group for processes of hosts.
    pub(super) fn sandbox(&self) -> BorrowedFd<'_> {
        self.sandbox.as_fd()
    }

    /// Returns the group of an init system, which is created if it does not exist.
    pub(super) fn init(&self) -> Result<OwnedFd, CgroupError> {
        make_directory(INIT)
    }

    /// Returns the group for such processes at the limit.
    pub(super) fn reserve(&self) -> BorrowedFd<'_> {
        self.reserve.as_fd()
    }

    /// Sets the maximum number of processes of the sandbox. Excess processes keep running.
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
            // Root of the guest has removed the group.
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

/// Raises the kernel's own limit, which depends on the machine's memory, well above that of the
/// sandbox. At the kernel's limit the agent could not start anything either.
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
