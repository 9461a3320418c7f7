//! clone3(2) used like vfork(2), with a separate stack for the child and a control group to start
//! in. The guest's agent uses it for processes, and the manager for VMMs; this crate knows nothing
//! about either.
//!
//! It is written by hand, since libc's clone(2) does not take a control group, and moving an
//! existing process into one stops all forks of the kernel meanwhile (`cgroup_threadgroup_rwsem`),
//! which takes a grace period.

use rustix::io::Errno;
use rustix::process::Pid;
use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `CLONE_INTO_CGROUP` (linux/sched.h), which does not fit into the flags of clone(2).
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_CLEAR_SIGHAND`: in the child, signals that are handled get their default disposition.
const CLEAR_HANDLERS: u64 = 0x1_0000_0000;

/// `struct clone_args` (clone(2)), with the length that it had when control groups were added.
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

/// How a child starts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beginning<'a> {
    /// A directory of a cgroup v2 hierarchy. `None` for the group of the parent.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Resets the dispositions of signals that this process handles.
    pub clear_handlers: bool,
}

/// Runs `entry(argument)` in a child that shares the memory of this process, on `stack`. Returns
/// when the child has executed a program or ended. The return value of `entry` is its exit code.
///
/// # Safety
/// No signal handler may run in the child: either the process has one thread and handles no
/// signals, or the calling thread has all signals blocked and `entry` unblocks them only after
/// their handlers are cleared. `entry` may only make system calls and write to what `argument`
/// points to, which must be valid during this call.
///
/// # Errors
/// The error of the kernel.
pub unsafe fn vfork(
    entry: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
    stack: &mut [u128],
    beginning: Beginning<'_>,
) -> Result<Pid, Errno> {
    let Beginning { cgroup, clear_handlers } = beginning;
    let shared = libc::CLONE_VM | libc::CLONE_VFORK;
    let arguments = Arguments {
        flags: u64::from(shared.unsigned_abs())
            | cgroup.map_or(0, |_| INTO_CGROUP)
            | if clear_handlers { CLEAR_HANDLERS } else { 0 },
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: stack.as_mut_ptr() as u64,
        stack_size: size_of_val(stack) as u64,
        cgroup: cgroup.map_or(0, |cgroup| u64::from(cgroup.as_raw_fd().unsigned_abs())),
        ..Arguments::default()
    };
    let result: i64;
    // SAFETY: the parent continues after the first `syscall`, once the child has stopped using its
    // memory, and nothing has changed except the registers that are named. The child starts there
    // with the same registers except rax, which is 0, and rsp, which is the 16-byte aligned top of
    // `stack`: it calls `entry` according to the C ABI and never returns from the second `syscall`.
    // The child has a separate stack, so it writes nothing into the parent's frames or below them.
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
    fn child_has_a_separate_stack_and_shares_memory() {
        let mut stack = vec![0u128; 1024];
        let mut number = 41u64;
        // SAFETY: `note` makes no calls, and `number` lives until the end of the child.
        let pid = unsafe { vfork(note, (&raw mut number).cast(), &mut stack, Beginning::default()) }.unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!((status.exit_status(), number), (Some(7), 42));
        assert!(stack.iter().any(|word| *word != 0), "the stack was used");
    }

    #[test]
    fn file_that_is_not_a_control_group_is_rejected() {
        let mut stack = vec![0u128; 1024];
        let file = std::fs::File::open("/dev/null").unwrap();
        let cgroup = std::os::fd::AsFd::as_fd(&file);
        let beginning = Beginning { cgroup: Some(cgroup), ..Beginning::default() };
        // SAFETY: the call fails before a child exists.
        let refused = unsafe { vfork(note, std::ptr::null_mut(), &mut stack, beginning) };
        assert_eq!(refused.unwrap_err(), Errno::BADF);
    }
}
