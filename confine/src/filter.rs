//! A list of system calls that a process keeps, as a seccomp filter. All others fail with ENOSYS: the C library then uses
//! what it would use on an older kernel, and does so for clone3(2), whose arguments no filter sees.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::{collections::BTreeMap, io};

/// What every process here does: it uses the descriptors that it has, memory, time and signals to itself.
const BASE: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
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

/// A condition on an argument of a call: its bits in a mask have a value. Values are compared in full, so a negative `int`
/// is given with the mask of an `int`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    index: u8,
    mask: u64,
    value: u64,
}

impl Argument {
    /// The bits of a C `int`.
    pub const INT: u64 = 0xffff_ffff;

    /// Returns the condition that an `int` argument is `value`, which is not negative.
    #[must_use]
    pub const fn is(index: u8, value: libc::c_int) -> Self {
        Self { index, mask: Self::INT, value: value.unsigned_abs() as u64 }
    }

    /// Returns the condition that all of an argument is `value`.
    #[must_use]
    pub const fn is_all_of(index: u8, value: u64) -> Self {
        Self { index, mask: u64::MAX, value }
    }

    /// Returns the condition that an argument has none of these flags.
    #[must_use]
    pub const fn lacks(index: u8, flags: libc::c_int) -> Self {
        Self { index, mask: flags.unsigned_abs() as u64, value: 0 }
    }

    /// Returns the condition that of the bits of `mask`, an argument has those of `value`.
    #[must_use]
    pub const fn has(index: u8, mask: u64, value: u64) -> Self {
        Self { index, mask, value }
    }
}

/// The system calls that a process keeps.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// For each call the alternatives, each of conditions that hold together.
    calls: BTreeMap<i64, Vec<Vec<Argument>>>,
}

impl Filter {
    /// Returns a filter with what every process here does. Nothing of it opens a file, makes a socket, sends to an address,
    /// starts a process or a thread, or affects another process.
    #[must_use]
    pub fn new() -> Self {
        let set_name = 15;
        let mut filter = Self::default()
            .allow(BASE)
            .allow_if(libc::SYS_mmap, &[Argument::lacks(2, libc::PROT_EXEC)])
            .allow_if(libc::SYS_mprotect, &[Argument::lacks(2, libc::PROT_EXEC)])
            // A thread's name.
            .allow_if(libc::SYS_prctl, &[Argument::is(0, set_name)])
            // Reading a limit.
            .allow_if(libc::SYS_prlimit64, &[Argument::is_all_of(2, 0)])
            // How a process aborts.
            .allow_if(libc::SYS_tgkill, &[Argument::is_all_of(0, std::process::id().into())]);
        for command in [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD, libc::F_DUPFD_CLOEXEC] {
            filter = filter.allow_if(libc::SYS_fcntl, &[Argument::is(1, command)]);
        }
        // Also how the standard library makes a socket non-blocking.
        for request in [libc::FIONBIO, libc::FIOCLEX] {
            filter = filter.allow_if(libc::SYS_ioctl, &[Argument::has(1, Argument::INT, request)]);
        }
        filter
    }

    /// Allows calls whatever their arguments.
    #[must_use]
    pub fn allow(mut self, calls: &[libc::c_long]) -> Self {
        self.calls.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// Allows a call if all of these conditions hold. Several of them for one call are alternatives.
    #[must_use]
    pub fn allow_if(mut self, call: libc::c_long, conditions: &[Argument]) -> Self {
        self.calls.entry(call).or_default().push(conditions.to_vec());
        self
    }

    /// Allows starting threads, in the namespaces of the process.
    #[must_use]
    pub fn allow_threads(self) -> Self {
        let bits = |flags: libc::c_int| u64::from(flags.unsigned_abs());
        let thread = bits(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND);
        let namespaces = bits(
            libc::CLONE_NEWUSER
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWCGROUP,
        );
        self.allow_if(libc::SYS_clone, &[Argument::has(0, thread | namespaces, thread)])
    }

    /// Allows using connected sockets, and sending over them to no address but that of the connection: neither by an
    /// address, nor by one that MSG_FASTOPEN connects to.
    #[must_use]
    pub fn allow_connected_sockets(self) -> Self {
        let calls = [
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_shutdown,
            libc::SYS_getsockname,
            libc::SYS_getpeername,
            libc::SYS_getsockopt,
        ];
        let without_address = [Argument::lacks(3, libc::MSG_FASTOPEN), Argument::is_all_of(4, 0)];
        self.allow(&calls).allow_if(libc::SYS_sendto, &without_address)
    }

    /// Returns the program of the filter.
    ///
    /// # Errors
    /// When there is none for this processor.
    pub(crate) fn compile(&self) -> io::Result<BpfProgram> {
        let condition = |argument: &Argument| {
            let operator = SeccompCmpOp::MaskedEq(argument.mask);
            SeccompCondition::new(argument.index, SeccompCmpArgLen::Qword, operator, argument.value)
        };
        let rule = |conditions: &Vec<Argument>| -> Result<SeccompRule, seccompiler::Error> {
            Ok(SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)?)
        };
        let rules = self.calls.iter().map(|(call, alternatives)| {
            Ok((*call, alternatives.iter().map(rule).collect::<Result<Vec<_>, seccompiler::Error>>()?))
        });
        let program = || -> Result<BpfProgram, seccompiler::Error> {
            let rules = rules.collect::<Result<_, seccompiler::Error>>()?;
            let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
            let target = std::env::consts::ARCH.try_into()?;
            Ok(SeccompFilter::new(rules, refused, SeccompAction::Allow, target)?.try_into()?)
        };
        program().map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile() {
        let all = Filter::new().allow_threads().allow_connected_sockets().allow(&[libc::SYS_socket]);
        for filter in [Filter::new(), all] {
            let length = filter.compile().unwrap().len();
            assert!((100..600).contains(&length), "{length} instructions");
        }
    }

    #[test]
    fn a_call_that_is_allowed_with_conditions_stays_so() {
        let filter = Filter::new().allow_if(libc::SYS_sendto, &[Argument::is_all_of(4, 0)]);
        assert_eq!(filter.calls[&libc::SYS_sendto], [vec![Argument::is_all_of(4, 0)]]);
    }
}
