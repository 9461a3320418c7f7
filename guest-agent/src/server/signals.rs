//! Signals: which ones the agent handles, which state its processes get, and how exit statuses are
//! read.

use rustix::io::Errno;
use rustix::process::WaitStatus;
use sandboxvm_protocol::agent::{ExitStatus, SignalNumber};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

/// Blocks the signals that the agent handles or must survive, and creates a descriptor that reports
/// ended children. SIGPIPE is blocked and not ignored, because processes would inherit the latter.
pub(super) fn child_signals() -> Result<OwnedFd, Errno> {
    let last = || Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised above.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: a valid set and signal.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    let children = set;
    // SAFETY: a valid set and signal.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGPIPE) };
    // SAFETY: reads one valid set, writes nowhere.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0 {
        return Err(last());
    }
    // SAFETY: reads one valid set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const children, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    // SAFETY: not negative, so a descriptor just made for us.
    if fd < 0 { Err(last()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// Resets what the agent has inherited from its parent, because processes would inherit it too:
/// ignored signals and open files. Init has neither.
pub(super) fn disinherit() {
    for signal in 1..=64 {
        // SAFETY: no handler is involved. Refused for the two signals that cannot be changed and those libc reserves.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: only marks descriptors to be closed on exec.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Returns the exit status for the wire, or `None` for a process that has not ended.
pub(super) fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    if let Some(code) = status.exit_status() {
        return u8::try_from(code).ok().map(ExitStatus::Code);
    }
    let signal = u8::try_from(status.terminating_signal()?).ok()?;
    SignalNumber::try_from(signal).ok().map(ExitStatus::Signal)
}
