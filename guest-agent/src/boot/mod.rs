//! From the kernel's hand-over to a machine that can run processes.
//!
//! Order matters and is all here: notify port (so that the VMM hears of the start), file systems, then what needs them.
//! Every step that fails ends the boot with a message naming it; nothing is retried and nothing waits.
//!
//! Nothing that runs in the sandbox can starve the agent unless it is root and means to: it is in a control group of its
//! own, so that no limit of the sandbox's is its own, and the scheduler lets it run before everything else. It needs no
//! `oom_score_adj`: the OOM killer never takes PID 1 of the initial namespace (mm/oom_kill.c, `oom_unkillable_task`), and
//! children therefore start with the 0 they should have, at no cost.

mod command_line;
mod loopback;
pub(crate) mod mounts;

use crate::process::cgroups::{CgroupError, Cgroups};
use crate::{identity::IdentityFiles, notify::NotifyPort};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};

/// Why the machine could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file system.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    /// Kernel command line.
    #[error("boot: cannot read /proc/cmdline: {0}")]
    CommandLine(Errno),
    /// Hostname.
    #[error("boot: cannot set the hostname {name:?}: {errno}")]
    Hostname {
        /// The name refused.
        name: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// Loopback.
    #[error("boot: cannot bring up the loopback interface: {0}")]
    Loopback(Errno),
    /// Limits.
    #[error("boot: cannot set the limit of open files: {0}")]
    Limits(Errno),
    /// Control groups.
    #[error("boot: {0}")]
    Cgroups(#[from] CgroupError),
    /// Scheduling.
    #[error("boot: cannot have the agent scheduled as it should be: {0}")]
    Scheduling(Errno),
}

/// A machine that is set up.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The VMM's notify port.
    pub(crate) notify: NotifyPort,
    /// Where its identity stands.
    pub(crate) identity: IdentityFiles,
    /// Where its processes are to be, until the server takes them.
    pub(crate) cgroups: Option<Cgroups>,
}

/// Hostname of a sandbox whose VMM names none.
const DEFAULT_HOSTNAME: &str = "sandbox";

/// Soft limit of open files, inherited by every process: above what the server's own caps can use (a connection and
/// three pipes each), low enough for programs that loop over it.
const OPEN_FILES: u64 = 8192;

/// Hard limit of open files: a process may raise its own.
const OPEN_FILES_HARD: u64 = 1 << 20;

/// The agent's own nice value. Among hundreds of processes that all want to run it would otherwise wait its turn for each
/// tick that it needs, which is seconds where the guest's kernel is interpreted. It never runs long.
const FIRST_OF_ALL: i32 = -20;

/// `SCHED_RESET_ON_FORK` (sched(7)): processes start with the nice value 0.
const RESET_ON_FORK: libc::c_int = 0x4000_0000;

/// Sets the machine up.
pub(crate) fn run() -> Result<Machine, BootError> {
    mounts::ensure_dev()?;
    let mut notify = NotifyPort::open();
    notify.started();
    mounts::enter_root()?;
    mounts::mount_kernel_filesystems()?;
    let command_line = command_line::CommandLine::read().map_err(BootError::CommandLine)?;
    let name = command_line.hostname().unwrap_or(DEFAULT_HOSTNAME);
    rustix::system::sethostname(name.as_bytes())
        .map_err(|errno| BootError::Hostname { name: name.to_owned(), errno })?;
    let identity = IdentityFiles::make(name);
    loopback::up().map_err(BootError::Loopback)?;
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES_HARD) };
    setrlimit(Resource::Nofile, limit).map_err(BootError::Limits)?;
    let cgroups = Some(Cgroups::make()?);
    setpriority_process(None, FIRST_OF_ALL).and_then(|()| become_batch_task()).map_err(BootError::Scheduling)?;
    Ok(Machine { notify, identity, cgroups })
}

/// A batch task never preempts the task that wakes it (sched(7)). So a process that writes keeps writing until it
/// waits, ends or has used up its time slice, and the agent then takes in one turn what it would have been woken for
/// line by line. Processes are given the normal policy back before they execute their program.
fn become_batch_task() -> Result<(), Errno> {
    let priority: libc::c_int = 0;
    // SAFETY: reads one `struct sched_param`, which is one integer. By number, as musl offers no such function.
    let set = unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH | RESET_ON_FORK, &raw const priority)
    };
    if set == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
}
