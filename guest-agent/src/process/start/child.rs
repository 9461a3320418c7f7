//! The steps of a new process between clone and exec.
//!
//! The process runs on a separate stack in the agent's memory, while the agent is suspended
//! (vfork(2)). So it only makes system calls, does not allocate or panic, and leaves its report in
//! the plan, where the agent reads it.

use super::init_mounts;
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::os::fd::RawFd;
use std::ptr;

/// The step that failed in a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A new session, or its controlling terminal.
    Session,
    /// Standard streams.
    Streams,
    /// The namespaces of an init, and what is mounted there.
    Namespaces,
    /// The limit of open files.
    Limits,
    /// User and groups.
    User,
    /// Working directory.
    WorkingDirectory,
    /// execve itself.
    Exec,
}

impl Step {
    /// Returns the name for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Session => "open a session",
            Self::Streams => "set up its standard streams",
            Self::Namespaces => "make or enter the namespaces of the init",
            Self::Limits => "be limited in its open files",
            Self::User => "change to the user",
            Self::WorkingDirectory => "enter the working directory",
            Self::Exec => "execute",
        }
    }
}

/// User and groups to which the process changes.
#[derive(Debug)]
pub(super) struct Credentials<'a> {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: &'a [u32],
}

/// The mount and control group namespaces of the process. Its PID namespace is that of the clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Namespaces {
    /// Those of the agent.
    Machine,
    /// New ones.
    New,
    /// Those of the process with this descriptor.
    Of(RawFd),
}

/// Everything that the child needs. All pointers are to NUL-terminated strings, and arrays of them
/// end with null.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Files to try, in order.
    pub(super) programs: &'a [*const c_char],
    pub(super) argv: &'a [*const c_char],
    pub(super) envp: &'a [*const c_char],
    /// Descriptors that become stdin, stdout and stderr. Each is above 2.
    pub(super) streams: [RawFd; 3],
    /// Whether stdin is a terminal, which becomes that of the session.
    pub(super) terminal: bool,
    pub(super) namespaces: Namespaces,
    pub(super) credentials: Option<Credentials<'a>>,
    /// Whether the agent is a batch task. Its processes are not.
    pub(super) is_batch: bool,
    /// Maximum number of open files, if it differs from the agent's.
    pub(super) files: Option<u64>,
    /// Whether the sandbox is at its limit of processes. Then this process gets a higher priority.
    pub(super) is_urgent: Cell<bool>,
    /// Working directory. Null to stay in the agent's, which is the root.
    pub(super) directory: *const c_char,
    /// Whether to use the root if the working directory cannot be entered.
    pub(super) directory_is_optional: bool,
    /// The failure, if the child failed.
    pub(super) failure: Cell<Option<(Step, c_int)>>,
}

/// Entry for clone(2). Returns only if it failed, with an exit code.
///
/// Must be called with a pointer to a [`Plan`], in a process that shares memory with an agent that is suspended.
pub(super) extern "C" fn run(plan: *mut c_void) -> c_int {
    // SAFETY: spawn passes a pointer to a `Plan` that lives on the suspended agent's stack.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    let step = prepare(plan);
    let failure = match step {
        Ok(()) => (Step::Exec, exec(plan)),
        Err(step) => (step, errno()),
    };
    plan.failure.set(Some(failure));
    127
}

/// Returns the error of the call that has just failed.
fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Makes all calls before exec. On an error, errno is still that of the step that is returned.
fn prepare(plan: &Plan<'_>) -> Result<(), Step> {
    // SAFETY: no memory involved.
    if unsafe { libc::setsid() } < 0 {
        return Err(Step::Session);
    }
    // SAFETY: TIOCSCTTY takes an integer.
    if plan.terminal && unsafe { libc::ioctl(plan.streams[0], libc::TIOCSCTTY, 0) } < 0 {
        return Err(Step::Session);
    }
    for (target, source) in (0..).zip(plan.streams) {
        // SAFETY: descriptors are the process's own since the clone; the agent's table is another.
        if unsafe { libc::dup2(source, target) } < 0 {
            return Err(Step::Streams);
        }
    }
    let is_inside = match plan.namespaces {
        Namespaces::Machine => true,
        Namespaces::New => init_mounts::make(plan.terminal),
        Namespaces::Of(init) => init_mounts::enter(init),
    };
    if !is_inside {
        return Err(Step::Namespaces);
    }
    if let Some(files) = plan.files
        && !limit_files(files)
    {
        return Err(Step::Limits);
    }
    if plan.is_urgent.get() {
        come_first();
    }
    if let Some(credentials) = &plan.credentials
        && !change_user(credentials)
    {
        return Err(Step::User);
    }
    if !enter_directory(plan) {
        return Err(Step::WorkingDirectory);
    }
    unblock_signals();
    if plan.is_batch {
        become_normal_task();
    }
    Ok(())
}

/// Sets the soft and the hard limit.
fn limit_files(files: u64) -> bool {
    let limit = libc::rlimit64 { rlim_cur: files, rlim_max: files };
    let none = ptr::null_mut::<libc::rlimit64>();
    // SAFETY: reads one `struct rlimit64`; the null pointer says that the old limit is not to be written anywhere.
    (unsafe { libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, &raw const limit, none) }) == 0
}

/// Raises the priority. Hundreds of busy processes would leave this one a hundredth of the
/// processor, which is too little to look at them and to end them. If the call is refused, nothing
/// changes.
fn come_first() {
    const NICE: c_int = -15;
    // SAFETY: no memory involved.
    unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, NICE) };
}

/// Changes user and groups by raw system calls, because libc's functions would try to change all
/// threads of the process.
fn change_user(credentials: &Credentials<'_>) -> bool {
    let Credentials { uid, gid, groups } = credentials;
    // SAFETY: length and pointer are of one slice of 32-bit IDs, which the call only reads.
    (unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }) == 0
        // SAFETY: no memory involved.
        && (unsafe { libc::syscall(libc::SYS_setgid, *gid) }) == 0
        // SAFETY: no memory involved.
        && (unsafe { libc::syscall(libc::SYS_setuid, *uid) }) == 0
}

fn enter_directory(plan: &Plan<'_>) -> bool {
    // SAFETY: not null, so a NUL-terminated string, see `Plan`.
    if plan.directory.is_null() || unsafe { libc::chdir(plan.directory) } == 0 {
        return true;
    }
    // SAFETY: a NUL-terminated literal.
    plan.directory_is_optional && unsafe { libc::chdir(c"/".as_ptr()) } == 0
}

/// Unblocks all signals. The agent blocks SIGCHLD and SIGPIPE. Its dispositions are all default, so
/// nothing else is reset.
fn unblock_signals() {
    // The kernel's signal set has 64 bits.
    let none: u64 = 0;
    let size = size_of::<u64>();
    // SAFETY: the pointer is to a signal set of the size given, which the call only reads.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null_mut::<u64>(), size)
    };
}

/// Returns to the normal policy. This cannot fail for a task that may be a batch task.
fn become_normal_task() {
    let priority: c_int = 0;
    // SAFETY: reads one `struct sched_param`, which is one integer.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const priority) };
}

/// Tries one program after the other, as execvp(3) does. Returns only if all fail, with the errno.
/// A refusal takes precedence over later missing files, so that a program that may not be executed
/// is not reported as missing.
fn exec(plan: &Plan<'_>) -> c_int {
    let mut failure = libc::ENOENT;
    for program in plan.programs.iter().take_while(|program| !program.is_null()) {
        // SAFETY: strings and null-terminated arrays as `Plan` says; they outlive the call.
        unsafe { libc::execve(*program, plan.argv.as_ptr(), plan.envp.as_ptr()) };
        match errno() {
            libc::EACCES => failure = libc::EACCES,
            libc::ENOENT | libc::ENOTDIR => {}
            errno => return errno,
        }
    }
    failure
}
