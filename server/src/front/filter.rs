//! The system calls of a front: reading, writing and closing what it has, accepting connections, memory, threads and time. It
//! opens no file, makes no socket, starts no program, and signals no process.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use std::{collections::BTreeMap, io};

const ALWAYS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_fstat,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// For an exporter of traces, which looks up the name of its collector and connects to it.
const CONNECTS: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_openat,
    libc::SYS_open,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_readlink,
    libc::SYS_access,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_pipe2,
    // Libraries that look up names are loaded when they are needed.
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
];

/// `prctl(PR_SET_NAME)`: a thread's name.
const SET_NAME: u64 = 15;

/// Leaves the process these calls from now on. All others fail with ENOSYS.
pub(super) fn apply(connects: bool) -> io::Result<()> {
    apply_filter(&program(connects).map_err(io::Error::other)?).map_err(io::Error::other)
}

fn program(connects: bool) -> Result<BpfProgram, seccompiler::Error> {
    let always = |calls: &[libc::c_long]| calls.iter().map(|call| (*call, Vec::new())).collect::<Vec<_>>();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = conditions()?;
    rules.extend(always(ALWAYS));
    if connects {
        rules.extend(always(CONNECTS));
    }
    // The C library starts threads by clone(2) where clone3(2), whose arguments no filter sees, is not there.
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let target = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, refused, SeccompAction::Allow, target)?.try_into()?)
}

/// Calls of which some arguments are allowed.
fn conditions() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::Error> {
    let is = |argument, value| -> Result<SeccompRule, seccompiler::Error> {
        Ok(SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)?])?)
    };
    let has = |argument, mask, value| -> Result<SeccompRule, seccompiler::Error> {
        let masked = SeccompCmpOp::MaskedEq(mask);
        Ok(SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, masked, value)?])?)
    };
    let all = |argument: u8, values: &[u64]| values.iter().map(|value| is(argument, *value)).collect();
    let number = |value: libc::c_int| u64::from(value.unsigned_abs());
    let executable = number(libc::PROT_EXEC);
    // A thread of this process, in the same namespaces.
    let thread = number(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND);
    let namespaces = number(
        libc::CLONE_NEWUSER
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP,
    );
    // Of two arguments.
    let both = |one: (u8, u64, u64), other: (u8, u64, u64)| -> Result<Vec<SeccompRule>, seccompiler::Error> {
        let condition = |(argument, mask, value)| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
        };
        Ok(vec![SeccompRule::new(vec![condition(one)?, condition(other)?])?])
    };
    // A listener that was shut down could connect by it, in the network that it was made in.
    let fast_open = number(libc::MSG_FASTOPEN);
    let int = u64::from(u32::MAX);
    let flags = [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD, libc::F_DUPFD_CLOEXEC].map(number);
    let rules: Result<Vec<(i64, Vec<SeccompRule>)>, seccompiler::Error> = [
        (libc::SYS_mmap, has(2, executable, 0).map(|rule| vec![rule])),
        (libc::SYS_mprotect, has(2, executable, 0).map(|rule| vec![rule])),
        (libc::SYS_clone, has(0, thread | namespaces, thread).map(|rule| vec![rule])),
        // Not one of datagrams, which can be sent to the path of any socket.
        (libc::SYS_socketpair, both((0, int, number(libc::AF_UNIX)), (1, 0xf, number(libc::SOCK_STREAM)))),
        // To no address but that of the connection.
        (libc::SYS_sendto, both((3, fast_open, 0), (4, u64::MAX, 0))),
        (libc::SYS_sendmsg, has(2, fast_open, 0).map(|rule| vec![rule])),
        // Others last as long as the listener, which the next front is to have.
        (libc::SYS_setsockopt, both((1, int, number(libc::IPPROTO_TCP)), (2, int, number(libc::TCP_NODELAY)))),
        (libc::SYS_fcntl, all(1, &flags)),
        // Also how the standard library makes a socket non-blocking.
        (libc::SYS_ioctl, all(1, &[libc::FIONBIO, libc::FIOCLEX])),
        (libc::SYS_prctl, all(0, &[SET_NAME])),
        // Reading a limit.
        (libc::SYS_prlimit64, is(2, 0).map(|rule| vec![rule])),
        // How a process aborts.
        (libc::SYS_tgkill, is(0, u64::from(std::process::id())).map(|rule| vec![rule])),
    ]
    .into_iter()
    .map(|(call, rules)| Ok((call, rules?)))
    .collect();
    Ok(rules?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_filters_compile() {
        for connects in [false, true] {
            let length = program(connects).unwrap().len();
            assert!((100..600).contains(&length), "{length} instructions");
        }
    }
}
