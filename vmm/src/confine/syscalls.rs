//! The system calls that are left, with their arguments where one call has harmless and harmful uses. Everything else
//! ends the process with SIGSYS: a VMM that makes another call is no longer ours.

use super::{ConfineError, dispatch};
use crate::snapshot::tracking;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompRule as Rule, apply_filter,
};
use std::collections::BTreeMap;

/// Calls allowed with any arguments: on descriptors that are open, on memory that is ours, on time, on this process.
const ALLOWED: &[libc::c_long] = &[
    // Files, sockets and pipes that were handed in or accepted.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
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
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_accept4,
    libc::SYS_accept,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads and signals of this process. A fork has SIGCHLD as its only flag; namespaces need others (see below).
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_fork,
    libc::SYS_tkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Time and entropy.
    libc::SYS_clock_gettime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
];

/// Length of a 32-bit argument comparison.
const WORD: Len = Len::Dword;

fn when(argument: u8, length: Len, op: Op, value: u64) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(argument, length, op, value)
}

/// ioctl requests: those of KVM (type 0xae), FIONBIO on a socket or pipe, and those that track writes.
fn ioctl_rules() -> Result<Vec<Rule>, seccompiler::BackendError> {
    const TYPE_MASK: u64 = 0xff00;
    const KVM_TYPE: u64 = 0xae00;
    const FIONBIO: u64 = 0x5421;
    let mut rules = vec![Rule::new(vec![when(1, WORD, Op::MaskedEq(TYPE_MASK), KVM_TYPE)?])?];
    let exact = [FIONBIO, tracking::UFFDIO_API.into(), tracking::UFFDIO_REGISTER.into(), tracking::PAGEMAP_SCAN.into()];
    for request in exact {
        rules.push(Rule::new(vec![when(1, WORD, Op::Eq, request)?])?);
    }
    Ok(rules)
}

/// userfaultfd for user mode's own faults only: one that could stall the kernel's is a tool for attacks on it.
fn userfaultfd_rules() -> Result<Vec<Rule>, seccompiler::BackendError> {
    Ok(vec![Rule::new(vec![when(0, WORD, Op::Eq, tracking::USERFAULTFD_FLAGS.into())?])?])
}

/// Memory that can be executed is never mapped or made.
fn no_exec_rules() -> Result<Vec<Rule>, seccompiler::BackendError> {
    const PROT_EXEC: u64 = 4;
    Ok(vec![Rule::new(vec![when(2, WORD, Op::MaskedEq(PROT_EXEC), 0)?])?])
}

/// clone without a new namespace.
fn clone_rules() -> Result<Vec<Rule>, seccompiler::BackendError> {
    const NAMESPACES: u64 = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET)
        .cast_unsigned() as u64;
    Ok(vec![Rule::new(vec![when(0, Len::Qword, Op::MaskedEq(NAMESPACES), 0)?])?])
}

/// prctl: naming a thread, and mappings; ending with the process one was forked off.
fn prctl_rules() -> Result<Vec<Rule>, seccompiler::BackendError> {
    let option = |value: libc::c_int| when(0, WORD, Op::Eq, u64::from(value.unsigned_abs()));
    [libc::PR_SET_NAME, libc::PR_SET_VMA, libc::PR_SET_PDEATHSIG]
        .into_iter()
        .map(|allowed| Rule::new(vec![option(allowed)?]))
        .collect()
}

fn program() -> Result<BpfProgram, seccompiler::Error> {
    let under_conditions = [
        (libc::SYS_ioctl, ioctl_rules()?),
        (libc::SYS_mmap, no_exec_rules()?),
        (libc::SYS_mprotect, no_exec_rules()?),
        (libc::SYS_clone, clone_rules()?),
        (libc::SYS_prctl, prctl_rules()?),
        (libc::SYS_userfaultfd, userfaultfd_rules()?),
    ];
    let always = ALLOWED.iter().map(|call| (*call, Vec::new()));
    let number = |(call, rules): (libc::c_long, _)| (u32::try_from(call).expect("numbers of calls are small"), rules);
    let rules: BTreeMap<u32, Vec<Rule>> = always.chain(under_conditions).map(number).collect();
    Ok(dispatch::compile(rules, &SeccompAction::KillProcess))
}

/// Installs the filter in this thread, the only one there is, and so in all it will ever start.
pub(super) fn filter() -> Result<(), ConfineError> {
    Ok(apply_filter(&program()?)?)
}
