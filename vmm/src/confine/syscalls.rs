//! The system calls that are left to each kind of thread, with their arguments where one call has harmless and harmful
//! uses. Everything else is refused, reported (see [`super::last_call`]) and ends the process: a VMM that makes another call is
//! no longer ours.
//!
//! The first filter is the event loop's, taken before any thread is started and before it is known what the process is
//! for, so it also holds all that a live fork needs to build its machine, and the calls of every kind of device. Which
//! those are is handed in ([`DeviceCalls`]): a device names its calls in its own module. Other threads inherit it and take a narrower
//! one on top: of two filters the stricter answer counts.

use super::{
    dispatch::{self, Check, Rule, Test},
    error::ConfineError,
    kvm_requests, tracking_requests,
};
use seccompiler::{BpfProgram, SeccompAction, apply_filter};
use std::collections::BTreeMap;
use vmm_sys_util::signal::SIGRTMIN;

/// Whose calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// To the event loop, and so at most to any thread.
    EventLoop,
    /// To a thread that runs a vCPU.
    Vcpu,
    /// To a process that writes a snapshot or merges layers.
    Writer,
}

/// System calls of devices, beside those that every thread of a kind has.
#[derive(Debug, Clone, Default)]
pub struct DeviceCalls {
    /// Of the event loop.
    pub event_loop: Vec<libc::c_long>,
    /// Of a thread that runs a vCPU.
    pub vcpu: Vec<libc::c_long>,
}

/// On memory of this process, its threads and signals, time and entropy; ending.
const EVERYWHERE: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
];

/// On files that were handed in.
const FILES: &[libc::c_long] = &[
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
];

/// Of a thread that runs a vCPU: the console's log.
const VCPU: &[libc::c_long] = &[libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_ftruncate];

/// Of the event loop: descriptors and the manager's sockets, threads and forks.
const EVENT_LOOP: &[libc::c_long] = &[
    libc::SYS_close_range,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_accept4,
    libc::SYS_accept,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sched_getaffinity,
    libc::SYS_fork,
];

/// Advice that changes nothing but this process's own pages: not that which offers them to be merged with those of
/// others (KSM), or has the kernel take them for broken.
const ADVICE: [libc::c_int; 4] = [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_DONTFORK, MADV_GUARD_INSTALL];
/// linux/mman.h; for the guard pages of threads' stacks.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// What C libraries give clone(2) to start a thread, and one of them to fork. Nothing makes a namespace.
const THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID)
    .cast_unsigned();
const THREAD_OF_MUSL: u32 = THREAD | libc::CLONE_DETACHED.cast_unsigned();
const FORK_OF_GLIBC: u32 = (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD).cast_unsigned();

const FIONBIO: u32 = 0x5421;
/// linux/resource.h; C libraries differ in its type.
const PRIO_PROCESS: u32 = 0;

/// The calls of [`Left`] that depend on arguments, each with its conditions.
fn conditions(left: Left) -> Vec<(libc::c_long, Vec<Check>)> {
    // Memory that can be executed is never mapped or made.
    let no_code = || vec![Check { argument: 2, test: Test::Without(libc::PROT_EXEC.cast_unsigned()) }];
    let signal = SIGRTMIN().cast_unsigned();
    let mut conditions = vec![
        (libc::SYS_mmap, no_code()),
        (libc::SYS_mprotect, no_code()),
        (libc::SYS_madvise, one_of(2, ADVICE.map(libc::c_int::cast_unsigned))),
        // Of the signals those for our own threads: a kick, and abort(3).
        (libc::SYS_tkill, one_of(1, [signal, libc::SIGABRT.cast_unsigned()])),
    ];
    match left {
        Left::EventLoop => {
            let requests = kvm_requests::OFTEN.iter().chain(kvm_requests::BUILDING);
            let requests = requests.chain(&tracking_requests::ALL).chain(&[FIONBIO]);
            conditions.extend([
                (libc::SYS_ioctl, one_of(1, requests.copied())),
                // Neither who gets a descriptor's signals nor that any are sent can be set: F_SETOWN reaches other processes.
                (
                    libc::SYS_fcntl,
                    one_of(
                        1,
                        [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL]
                            .map(libc::c_int::cast_unsigned),
                    ),
                ),
                (libc::SYS_clone, one_of(0, [THREAD_OF_MUSL, THREAD, FORK_OF_GLIBC])),
                // Naming a thread and mappings; ending with the process one was forked off; and narrower filters.
                (
                    libc::SYS_prctl,
                    one_of(
                        0,
                        [libc::PR_SET_NAME, libc::PR_SET_VMA, libc::PR_SET_PDEATHSIG, libc::PR_SET_NO_NEW_PRIVS]
                            .map(libc::c_int::cast_unsigned),
                    ),
                ),
                (libc::SYS_seccomp, [one_of(0, [libc::SECCOMP_SET_MODE_FILTER]), one_of(1, [0])].concat()),
                // Of the calling thread alone. It can change the length of its turns, and not how much it gets of the
                // processor but downwards: see RLIMIT_NICE and RLIMIT_RTPRIO in `bounds`.
                (libc::SYS_getpriority, [one_of(0, [PRIO_PROCESS]), one_of(1, [0])].concat()),
                (libc::SYS_sched_setattr, one_of(0, [0])),
                // Of this process alone, and without privilege only downwards.
                (libc::SYS_prlimit64, one_of(0, [0])),
                // For user mode's own faults only: one that could stall the kernel's is a tool for attacks on it.
                (libc::SYS_userfaultfd, one_of(0, [tracking_requests::USERFAULTFD_FLAGS])),
            ]);
        }
        Left::Vcpu => conditions.push((libc::SYS_ioctl, one_of(1, kvm_requests::OFTEN.iter().copied()))),
        Left::Writer => {}
    }
    conditions
}

fn one_of(argument: u32, values: impl IntoIterator<Item = u32>) -> Vec<Check> {
    vec![Check { argument, test: Test::OneOf(values.into_iter().collect()) }]
}

fn program(left: Left, devices: &DeviceCalls) -> BpfProgram {
    let more: [&[libc::c_long]; 3] = match left {
        Left::EventLoop => [FILES, EVENT_LOOP, &devices.event_loop],
        Left::Vcpu => [VCPU, &[], &devices.vcpu],
        Left::Writer => [FILES, &[], &[]],
    };
    let always = EVERYWHERE.iter().chain(more.into_iter().flatten()).map(|call| (*call, Vec::new()));
    let trap = |(call, checks)| (call, Rule { checks, otherwise: SeccompAction::Trap });
    // The handler of SIGSYS must not be replaced; the report ends the process by asking for that.
    let handlers = Rule {
        checks: vec![Check { argument: 0, test: Test::Not(libc::SIGSYS.cast_unsigned()) }],
        otherwise: SeccompAction::KillProcess,
    };
    let rules: BTreeMap<u32, Rule> = always
        .chain(conditions(left))
        .map(trap)
        .chain([(libc::SYS_rt_sigaction, handlers)])
        .map(|(call, rule)| (u32::try_from(call).expect("numbers of calls are small"), rule))
        .collect();
    dispatch::compile(rules, &SeccompAction::Trap)
}

/// Leaves the calling thread, and all that it starts or forks from here on, no more than this.
pub(super) fn leave(left: Left, devices: &DeviceCalls) -> Result<(), ConfineError> {
    Ok(apply_filter(&program(left, devices))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_is_short() {
        for left in [Left::EventLoop, Left::Vcpu, Left::Writer] {
            let length = program(left, &crate::devices::set::system_calls()).len();
            assert!(length < 400, "{length} instructions are left to {left:?}: each is compiled at a machine's start");
        }
    }
}
