//! Spawns the processes of a sandbox, its VMM and those of its network and its shares: in its control group, and
//! with nothing of this process but the three descriptors that they receive.
//!
//! Code between clone and exec runs in the memory of this process, while the calling thread waits
//! (vfork(2)) and other threads run. It may only make system calls, and stores its error where the
//! caller finds it.

use crate::vmm::group::Group;
use rustix::process::{Pid, WaitOptions, waitpid};
use sandboxvm_spawn::{Beginning, vfork};
use std::{
    cell::Cell,
    ffi::{CStr, CString, OsStr, c_char, c_int, c_void},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::{Command, Stdio},
    ptr,
};

/// Size in bytes of the stack that the child has until its exec, which uses little of it.
const STACK: usize = 16 * 1024;
/// Size in bytes of the kernel's signal set.
const SIGNAL_SET: usize = size_of::<u64>();

/// What the child does. Pointers are to strings that end with NUL; arrays of them end with null.
struct Plan<'a> {
    program: *const c_char,
    argv: &'a [*const c_char],
    envp: &'a [*const c_char],
    /// These become stdin, stdout and stderr. Each is above 2, so that the copies are not closed on
    /// exec.
    streams: [RawFd; 3],
    /// Errno of the call that failed.
    failure: Cell<c_int>,
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    /// True if it is in the group that was chosen for it, either from its start or before it
    /// received anything.
    pub(crate) is_in_group: bool,
}

/// The descriptors that a process receives.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Its stdin.
    pub(crate) input: OwnedFd,
    /// Its stdout; `/dev/null` if absent.
    pub(crate) output: Option<OwnedFd>,
    /// Its stderr.
    pub(crate) log: OwnedFd,
}

/// Starts `program`, with at most one argument and without an environment, in `/`.
pub(crate) fn spawn(
    program: &Path,
    argument: Option<&CStr>,
    streams: Streams,
    group: Option<&Group>,
) -> io::Result<Spawned> {
    let path = CString::new(program.as_os_str().as_bytes())?;
    let output = match streams.output {
        Some(output) => output,
        None => File::options().write(true).open("/dev/null")?.into(),
    };
    let output = above_streams(output)?;
    let (channel, log) = (above_streams(streams.input)?, above_streams(streams.log)?);
    let plan = Plan {
        program: path.as_ptr(),
        // Without an argument the second null is not read.
        argv: &[path.as_ptr(), argument.map_or(ptr::null(), CStr::as_ptr), ptr::null()],
        envp: &[ptr::null()],
        streams: [channel.as_raw_fd(), output.as_raw_fd(), log.as_raw_fd()],
        failure: Cell::new(0),
    };
    match clone(&plan, group) {
        Ok(pid) => match plan.failure.get() {
            0 => Ok(Spawned { pid, is_in_group: group.is_some() }),
            errno => {
                let _ = waitpid(Some(pid), WaitOptions::empty());
                Err(io::Error::from_raw_os_error(errno))
            }
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory) => Err(error),
        // Before Linux 5.7; in a container that filters clone3(2); or with a group that does not
        // accept processes any more.
        Err(_) => {
            let streams = Streams { input: channel, output: Some(output), log };
            spawn_and_move(program, argument, streams, group)
        }
    }
}

/// Starts the process with the standard library, and moves it into its group before it receives
/// anything.
fn spawn_and_move(
    program: &Path,
    argument: Option<&CStr>,
    streams: Streams,
    group: Option<&Group>,
) -> io::Result<Spawned> {
    let Streams { input, output, log } = streams;
    let mut command = Command::new(program);
    command.args(argument.map(|argument| OsStr::from_bytes(argument.to_bytes())));
    command.env_clear().current_dir("/").stdin(Stdio::from(input)).stderr(Stdio::from(log));
    command.stdout(output.map_or_else(Stdio::null, Stdio::from));
    let pid = Pid::from_child(&command.spawn()?);
    Ok(Spawned { pid, is_in_group: group.is_some_and(|group| group.admit(pid).is_ok()) })
}

/// Returns a descriptor above 2. A program may have been started without standard streams, so `fd`
/// may be one of their numbers.
fn above_streams(fd: OwnedFd) -> io::Result<OwnedFd> {
    // A copy has a number above 2.
    if fd.as_raw_fd() > 2 { Ok(fd) } else { fd.try_clone() }
}

fn clone(plan: &Plan<'_>, group: Option<&Group>) -> io::Result<Pid> {
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let beginning = Beginning { cgroup: group.map(Group::fd), clear_handlers: true, ..Beginning::default() };
    let (all, mut before) = (u64::MAX, 0u64);
    // SAFETY: the call reads one signal set of the size given and writes another.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut before, SIGNAL_SET);
    }
    let argument = (&raw const *plan).cast_mut().cast();
    // SAFETY: all signals are blocked in this thread, and so in the child, whose handlers are
    // cleared. `run` only makes system calls and writes to `plan.failure`, a Cell of this thread's,
    // which is suspended meanwhile.
    let pid = unsafe { vfork(run, argument, &mut stack, beginning) };
    // SAFETY: the call reads one signal set of the size given.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const before,
            ptr::null_mut::<u64>(),
            SIGNAL_SET,
        );
    }
    Ok(pid?)
}

/// Runs in the child. Returns, with an exit code, only if a call failed.
extern "C" fn run(plan: *mut c_void) -> c_int {
    // SAFETY: `clone` passes a pointer to a `Plan` that outlives the child's use of it.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    if is_prepared(plan) {
        // SAFETY: strings and arrays as `Plan` says, which outlive the call.
        unsafe { libc::execve(plan.program, plan.argv.as_ptr(), plan.envp.as_ptr()) };
    }
    plan.failure.set(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
    127
}

fn is_prepared(plan: &Plan<'_>) -> bool {
    for (target, source) in (0..).zip(plan.streams) {
        // SAFETY: the descriptors are the child's own since the clone; this process's table is
        // another.
        if unsafe { libc::dup2(source, target) } < 0 {
            return false;
        }
    }
    let none = 0u64;
    // SAFETY: a NUL-terminated literal.
    (unsafe { libc::chdir(c"/".as_ptr()) }) == 0
        // Every program whose runtime is Rust's ignores SIGPIPE, and exec would keep that.
        // SAFETY: SIG_DFL is a valid disposition; the table is the child's own.
        && (unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) }) != libc::SIG_ERR
        // SAFETY: reads one signal set of the size given.
        && (unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const none,
                ptr::null_mut::<u64>(),
                SIGNAL_SET,
            )
        }) == 0
}
