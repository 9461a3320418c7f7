//! The end of the machine: a relay ends after the programs that may still write to its share.

use rustix::fs::{CWD, Dir, Mode, OFlags, open, readlinkat};
use rustix::process::getpid;
use std::mem::MaybeUninit;
use std::time::Duration;

/// Interval at which other processes are counted once the machine ends.
const POLL: Duration = Duration::from_millis(50);

/// Blocks SIGTERM in this thread and those that it starts. Returns what a thread does that waits for it:
/// it ends this process when no other process of programs is left.
pub(super) fn end_after_the_others() -> impl FnOnce() + Send + 'static {
    let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the call initialises the set.
    unsafe { libc::sigemptyset(signals.as_mut_ptr()) };
    // SAFETY: initialised by the call before.
    let mut signals = unsafe { signals.assume_init() };
    // SAFETY: an initialised set, and a valid signal.
    unsafe { libc::sigaddset(&raw mut signals, libc::SIGTERM) };
    // SAFETY: reads an initialised set.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) };
    move || {
        let mut signal = 0;
        // SAFETY: reads an initialised set and writes an integer.
        while unsafe { libc::sigwait(&raw const signals, &raw mut signal) } != 0 {}
        while are_there_others() {
            std::thread::sleep(POLL);
        }
        // SAFETY: ends the process without running any destructor, since another thread uses everything.
        unsafe { libc::_exit(0) }
    }
}

/// Returns true if a process exists that is not the agent, a relay, or a thread of the kernel.
fn are_there_others() -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(processes) = open("/proc", flags, Mode::empty()).and_then(Dir::new) else { return false };
    let own = getpid().as_raw_nonzero().get();
    let agent = program(1);
    processes.flatten().any(|entry| {
        let pid: Option<i32> = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
        pid.is_some_and(|pid| pid > 1 && pid != own && program(pid).is_some_and(|program| Some(program) != agent))
    })
}

/// Returns the program of a process. Threads of the kernel and processes that have ended have none.
fn program(pid: i32) -> Option<Vec<u8>> {
    readlinkat(CWD, format!("/proc/{pid}/exe"), Vec::new()).ok().map(|path| path.into_bytes())
}
