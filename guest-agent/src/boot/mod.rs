//! The boot of the agent: from the start by the kernel to a machine that can run processes.
//!
//! The order of the steps matters, and this module owns it: the notify port first, so that the VMM
//! receives the report of the start, then the file systems, then everything that needs them. A step
//! that fails ends the boot with a message that names it. Nothing is retried, and nothing waits.
//!
//! No process of the sandbox can starve the agent, except root on purpose. The agent is in a
//! separate control group, so the limits of the sandbox do not apply to it, and the scheduler
//! prefers it to all processes. It needs no `oom_score_adj`: the OOM killer never kills PID 1 of
//! the initial namespace (mm/oom_kill.c, `oom_unkillable_task`). So children start with the right
//! value, 0, at no cost.

mod command_line;
mod loopback;
pub(crate) mod mounts;

use crate::process::cgroups::{CgroupError, Cgroups};
use crate::{identity::IdentityFiles, network::Card, notify::NotifyPort};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};
use std::os::fd::{AsFd, OwnedFd};

/// Why the machine cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file system cannot be mounted.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    /// The kernel command line cannot be read.
    #[error("boot: cannot read /proc/cmdline: {0}")]
    CommandLine(Errno),
    /// The hostname cannot be set.
    #[error("boot: cannot set the hostname {name:?}: {errno}")]
    Hostname {
        /// The refused name.
        name: String,
        /// The error of the kernel.
        errno: Errno,
    },
    /// The loopback interface cannot be brought up.
    #[error("boot: cannot bring up the loopback interface: {0}")]
    Loopback(Errno),
    /// The limits cannot be set.
    #[error("boot: cannot set the limit of open files: {0}")]
    Limits(Errno),
    /// The control groups cannot be created.
    #[error("boot: {0}")]
    Cgroups(#[from] CgroupError),
    /// The scheduling policy cannot be set.
    #[error("boot: cannot have the agent scheduled as it should be: {0}")]
    Scheduling(Errno),
}

/// A machine that is set up.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The VMM's notify port.
    pub(crate) notify: NotifyPort,
    /// The files with its identity.
    pub(crate) identity: IdentityFiles,
    /// The control groups of its processes, until the server takes them.
    pub(crate) cgroups: Option<Cgroups>,
    /// The overlay's upper directory, until the server takes it.
    pub(crate) upper: Option<OwnedFd>,
}

/// Hostname of a sandbox for which the VMM sets none.
const DEFAULT_HOSTNAME: &str = "sandbox";

/// Soft limit of open files, which every process inherits. It is above what the server's own limits
/// can use (a connection and three pipes each), and low enough for programs that loop over all
/// numbers.
const OPEN_FILES: u64 = 8192;

/// Hard limit of open files. A process may raise its soft limit up to this.
const OPEN_FILES_HARD: u64 = 1 << 20;

/// Nice value of the agent. With the default, the agent would wait for its turn among hundreds of
/// busy processes for each tick that it needs, which is seconds if the guest's kernel is
/// interpreted. It never runs long.
const FIRST_OF_ALL: i32 = -20;

/// `SCHED_RESET_ON_FORK` (sched(7)): processes of the agent start with the nice value 0.
const RESET_ON_FORK: libc::c_int = 0x4000_0000;

/// Sets the machine up.
pub(crate) fn run() -> Result<Machine, BootError> {
    mounts::ensure_dev()?;
    let mut notify = NotifyPort::open();
    notify.started();
    let upper = Some(mounts::enter_root()?);
    mounts::mount_kernel_filesystems()?;
    let command_line = command_line::CommandLine::read().map_err(BootError::CommandLine)?;
    mounts::mount_run(command_line.run_is_on_disk())?;
    let name = command_line.hostname().unwrap_or(DEFAULT_HOSTNAME);
    rustix::system::sethostname(name.as_bytes())
        .map_err(|errno| BootError::Hostname { name: name.to_owned(), errno })?;
    let socket = loopback::up().map_err(BootError::Loopback)?;
    let card = Card::find(socket.as_fd()).inspect(Card::configure);
    let identity = IdentityFiles::make(name, card);
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES_HARD) };
    setrlimit(Resource::Nofile, limit).map_err(BootError::Limits)?;
    let cgroups = Some(Cgroups::make()?);
    setpriority_process(None, FIRST_OF_ALL).and_then(|()| become_batch_task()).map_err(BootError::Scheduling)?;
    Ok(Machine { notify, identity, cgroups, upper })
}

/// Makes the agent a batch task, which never preempts the task that wakes it (sched(7)). So a
/// process that writes keeps writing until it waits, ends or has used its time slice. The agent
/// then reads all of it in one turn, and is not woken for every line. Processes return to the
/// normal policy before they execute their program.
fn become_batch_task() -> Result<(), Errno> {
    let priority: libc::c_int = 0;
    // SAFETY: reads one `struct sched_param`, which is one integer. Uses the number of the call, as musl lacks the function.
    let set = unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH | RESET_ON_FORK, &raw const priority)
    };
    if set == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
}
