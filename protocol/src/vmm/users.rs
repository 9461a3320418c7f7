//! The users of VMMs that root starts. The VMM chooses its user, and the manager knows the range.

/// The first user: above all that systemd uses for containers, and below 2^31.
const FIRST: u32 = 0x7000_0000;
/// The highest process ID of Linux plus one.
const PROCESSES: u32 = 1 << 22;

/// User and group if the host lacks such a range, as in a container with some 65536 users. Not
/// `nobody`, which NFS and others use.
pub const SHARED: u32 = 64_738;

/// Returns the user of the VMM that was started as process `pid`, and of its live forks. No two
/// VMMs at the same time have the same user, except live forks: Linux does not reuse a process ID
/// while a session has it, and the forks of a VMM stay in its session.
#[must_use]
pub const fn of_vmm(pid: u32) -> u32 {
    FIRST + pid % PROCESSES
}

/// Returns true for a user that only a VMM has.
#[must_use]
pub const fn is_of_vmm(user: u32) -> bool {
    user == SHARED || (user >= FIRST && user - FIRST < PROCESSES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vmm_is_recognised_and_no_other_user() {
        for pid in [1, 4711, PROCESSES - 1] {
            assert!(is_of_vmm(of_vmm(pid)), "{pid}");
        }
        assert!(is_of_vmm(SHARED));
        for user in [0, 1000, 65_534, FIRST - 1, FIRST + PROCESSES, u32::MAX] {
            assert!(!is_of_vmm(user), "{user}");
        }
    }
}
