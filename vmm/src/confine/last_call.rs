//! What is said when the system call filter refuses a call: its number and which kind of thread made it, into the status
//! file and the log, and then the process ends by SIGSYS. Runs as a signal handler: it takes no lock, allocates nothing and
//! calls nothing but write(2).
//!
//! This is for diagnosis, not for confinement: the call was refused before. Code that took over the process can spoil the
//! report, but it cannot remove the handler: with SIGSYS blocked or ignored the kernel ends the process, and setting another
//! handler is itself answered with the end (see [`super::syscalls`]).

use rustix::io::Errno;
use sandboxvm_protocol::{
    machine::HostMode,
    vmm::{STATUS_LEN, VmmThread},
};
use std::{
    cell::Cell,
    io::{Cursor, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering},
};

/// The status file's descriptor, or -1.
static STATUS: AtomicI32 = AtomicI32::new(NOWHERE);
const NOWHERE: RawFd = -1;
static HOST_MODE: AtomicU8 = AtomicU8::new(0);
const MODES: [HostMode; 3] = [HostMode::Vmx, HostMode::Svm, HostMode::Pvm];

/// A call was refused: the status file is the report's.
static REFUSED: AtomicBool = AtomicBool::new(false);
/// A thread is writing the status file.
static WRITING: AtomicBool = AtomicBool::new(false);
/// How often the report looks whether that is over: longer than any write of a kilobyte takes.
const PATIENCE: u32 = 50_000_000;

thread_local! {
    /// Which kind of thread this is. Without a destructor and a first use that computes, so that a handler may read it.
    static THREAD: Cell<VmmThread> = const { Cell::new(VmmThread::EventLoop) };
}

/// Says which kind of thread the calling one is.
pub(super) fn this_is(thread: VmmThread) {
    THREAD.set(thread);
}

/// Has a refused call of this process reported in `status` from now on. The file must stay open until [`report_nowhere`].
pub(super) fn report_to(status: impl AsFd, mode: HostMode) {
    let index = MODES.iter().position(|known| *known == mode).unwrap_or_default();
    HOST_MODE.store(u8::try_from(index).unwrap_or_default(), Ordering::Relaxed);
    STATUS.store(status.as_fd().as_raw_fd(), Ordering::Relaxed);
}

/// From here on only the log is written to: in a new process, whose status file is another's.
pub(super) fn report_nowhere() {
    STATUS.store(NOWHERE, Ordering::Relaxed);
}

/// Does `write`, of the status file, unless a call was refused: other threads run on for a moment, and what they have to
/// say must not take the report's place. Of the two flags each side sets its own first and looks at the other's then.
pub(crate) fn unless_refused<T>(write: impl FnOnce() -> T) -> Option<T> {
    WRITING.store(true, Ordering::SeqCst);
    let written = (!REFUSED.load(Ordering::SeqCst)).then(write);
    WRITING.store(false, Ordering::SeqCst);
    written
}

/// Installs the handler.
///
/// # Errors
/// When sigaction(2) refuses.
pub(super) fn listen() -> std::io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one, with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = refused as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `refused` has the signature that SA_SIGINFO asks for and keeps to what a handler may do.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

extern "C" fn refused(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    /// `_sigsys._syscall` in siginfo_t (asm-generic/siginfo.h): behind three ints, padding and the call's address.
    const NUMBER: usize = 24;
    // SAFETY: the kernel hands a SA_SIGINFO handler a whole siginfo_t, of 128 bytes.
    let number = unsafe { &*info.cast::<[u32; 32]>() }[NUMBER / 4];
    let thread = THREAD.get();
    let mut line = [0; 128];
    tell(libc::STDERR_FILENO, log_line(&mut line, number, thread), None);
    let mut status = [b' '; STATUS_LEN];
    let file = STATUS.load(Ordering::Relaxed);
    if file != NOWHERE {
        REFUSED.store(true, Ordering::SeqCst);
        (0..PATIENCE).take_while(|_| WRITING.load(Ordering::SeqCst)).for_each(|_| std::hint::spin_loop());
        write_status(&mut status, number, thread);
        tell(file, &status, Some(0));
    }
    // Answered by the filter with the end of the process.
    // SAFETY: no pointers but null ones, which ask for nothing.
    unsafe {
        libc::syscall(libc::SYS_rt_sigaction, libc::SIGSYS, std::ptr::null::<u8>(), std::ptr::null::<u8>(), 8);
    }
    // SAFETY: ends the process without running anything of it; only reached where there is no filter of ours.
    unsafe { libc::_exit(125) }
}

/// Writes; a failure cannot be reported anywhere.
fn tell(fd: RawFd, bytes: &[u8], at: Option<u64>) {
    // SAFETY: standard error, or the status file, which the caller of `report_to` keeps open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let _: Result<usize, Errno> = match at {
        Some(offset) => rustix::io::pwrite(fd, bytes, offset),
        None => rustix::io::write(fd, bytes),
    };
}

fn log_line(line: &mut [u8], number: u32, thread: VmmThread) -> &[u8] {
    let mut cursor = Cursor::new(&mut *line);
    // Longer than any such line.
    let _ = writeln!(cursor, "sandboxvm-vmm: the system call filter refused call {number} in {thread}");
    let length = usize::try_from(cursor.position()).unwrap_or_default();
    &line[..length]
}

/// The status file's whole content: a `VmStatus` in JSON (see `status.rs`). A test holds it to what serde reads.
fn write_status(status: &mut [u8; STATUS_LEN], number: u32, thread: VmmThread) {
    let mode = MODES.get(usize::from(HOST_MODE.load(Ordering::Relaxed))).copied().unwrap_or(HostMode::Pvm);
    let pid = rustix::process::getpid().as_raw_nonzero();
    let thread = thread.word();
    let mut cursor = Cursor::new(&mut status[..]);
    // Some hundred bytes of a thousand.
    let _ = write!(
        cursor,
        r#"{{"pid":{pid},"phase":"ended","host_mode":"{mode}","reason":{{"forbidden_call":{{"number":{number},"thread":"{thread}"}}}}}}"#
    );
    status[STATUS_LEN - 1] = b'\n';
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::vmm::{ExitReason, Phase, VmStatus};

    #[test]
    fn what_is_written_by_hand_is_a_status() {
        for thread in [VmmThread::EventLoop, VmmThread::Vcpu, VmmThread::Writer] {
            let mut text = [b' '; STATUS_LEN];
            write_status(&mut text, u32::MAX, thread);
            let status: VmStatus = serde_json::from_slice(&text).unwrap();
            assert_eq!((status.pid, status.phase), (std::process::id(), Phase::Ended));
            assert_eq!(status.reason, Some(ExitReason::ForbiddenCall { number: u32::MAX, thread }));
        }
    }

    #[test]
    fn the_log_says_which_call_and_where() {
        let mut line = [0; 128];
        let said = std::str::from_utf8(log_line(&mut line, 59, VmmThread::Vcpu)).unwrap();
        assert_eq!(said, "sandboxvm-vmm: the system call filter refused call 59 in a vCPU thread\n");
    }
}
