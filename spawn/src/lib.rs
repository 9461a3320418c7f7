//! clone3(2) as vfork(2) does it, with a separate stack for the child and a control group to begin in. Used by the guest's
//! agent for processes and by the manager for VMMs; knows nothing of either.
//!
//! By hand, since libc's clone(2) takes no control group, and moving a process that exists into one stops all of the
//! kernel's forks meanwhile (`cgroup_threadgroup_rwsem`), which takes a grace period.

use rustix::io::Errno;
use rustix::process::Pid;
use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `CLONE_INTO_CGROUP` (linux/sched.h): above what fits the flags of clone(2).
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_CLEAR_SIGHAND`: signals that are handled get their default disposition in the child.
const CLEAR_HANDLERS: u64 = 0x1_0000_0000;

/// `struct clone_args` (clone(2)), as long as it was when control groups came into it.
#[repr(C)]
#[derive(Debug, Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// How a child begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beginning<'a> {
    /// The directory of a group of cgroup v2, open with `O_RDONLY` or `O_PATH`. `None`: the group of the parent.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Resets the dispositions of signals that this process handles to their defaults, before `entry` runs.
    pub clear_handlers: bool,
    /// Makes the child PID 1 of a new PID namespace. The caller still sees it under the PID that is returned. Needs
    /// CAP_SYS_ADMIN.
    pub new_pid_namespace: bool,
}

/// Runs `entry(argument)` in a child that shares this process's memory, on `stack`, and returns when that has executed
/// a program or ended; the value of `entry` is its exit code (0-255). The calling thread stands still meanwhile.
///
/// The child has all of `stack`, which grows down from its end and has no guard page: it must be large enough for `entry` and
/// what that calls. Returns the PID of the child, which sends SIGCHLD when it ends and has to be waited for.
///
/// # Safety
/// No signal handler may run in the child: the process has one thread and handles no signals, or the calling thread has
/// all signals blocked and `entry` unblocks them only after their handlers are cleared. `entry` only makes system calls and
/// writes to what `argument` points to, which must be valid for the time of this call.
///
/// # Errors
/// Those of clone3(2), and no child exists then: EAGAIN above a limit of processes, of the user or of the group; EBUSY or
/// EOPNOTSUPP for a group that takes no processes, EACCES for one that the caller may not write to; EPERM for a new PID
/// namespace without the capability; ENOSYS before Linux 5.3, and E2BIG before 5.7 with a group.
pub unsafe fn vfork(
    entry: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
    stack: &mut [u128],
    beginning: Beginning<'_>,
) -> Result<Pid, Errno> {
    let Beginning { cgroup, clear_handlers, new_pid_namespace } = beginning;
    let shared = libc::CLONE_VM | libc::CLONE_VFORK;
    let arguments = Arguments {
        flags: u64::from(shared.unsigned_abs())
            | cgroup.map_or(0, |_| INTO_CGROUP)
            | if clear_handlers { CLEAR_HANDLERS } else { 0 }
            | if new_pid_namespace { u64::from(libc::CLONE_NEWPID.unsigned_abs()) } else { 0 },
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: stack.as_mut_ptr() as u64,
        stack_size: size_of_val(stack) as u64,
        cgroup: cgroup.map_or(0, |cgroup| u64::from(cgroup.as_raw_fd().unsigned_abs())),
        ..Arguments::default()
    };
    let result: i64;
    // SAFETY: the parent continues after the first `syscall` with nothing changed but the registers named, once the child
    // has released the shared memory. The child begins there with all registers the same but rax, which is 0, and rsp, which
    // is the 16-byte aligned top of `stack`: it calls `entry` as the C ABI says, and never comes back from the second
    // `syscall`. What it writes below the parent's frames is none of it: its stack is its own.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "mov edi, eax",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            exit = const libc::SYS_exit,
            inout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<Arguments>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    let failed = || Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EAGAIN));
    i32::try_from(result).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or_else(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};

    extern "C" fn note(number: *mut c_void) -> c_int {
        // SAFETY: the test passes a pointer to an integer that outlives the child.
        unsafe { *number.cast::<u64>() += 1 };
        7
    }

    #[test]
    fn the_child_runs_on_its_own_stack_and_shares_memory() {
        let mut stack = vec![0u128; 1024];
        let mut number = 41u64;
        // SAFETY: `note` makes no call at all, and `number` is there until its end.
        let pid = unsafe { vfork(note, (&raw mut number).cast(), &mut stack, Beginning::default()) }.unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!((status.exit_status(), number), (Some(7), 42));
        assert!(stack.iter().any(|word| *word != 0), "the stack was used");
    }

    #[test]
    fn what_is_no_control_group_is_refused() {
        let mut stack = vec![0u128; 1024];
        let file = std::fs::File::open("/dev/null").unwrap();
        let cgroup = std::os::fd::AsFd::as_fd(&file);
        let beginning = Beginning { cgroup: Some(cgroup), ..Beginning::default() };
        // SAFETY: no child comes of it.
        let refused = unsafe { vfork(note, std::ptr::null_mut(), &mut stack, beginning) };
        assert_eq!(refused.unwrap_err(), Errno::BADF);
    }
}
