//! Users of VMMs that root starts: chosen by the VMM, known to the manager.

/// First of them: above all that systemd gives to containers, below 2^31.
const FIRST: u32 = 0x7000_0000;
/// One more than the highest process ID that Linux gives.
const PROCESSES: u32 = 1 << 22;

/// User and group where the host has no such range, as in a container with some 65536 users. Not `nobody`: NFS and others
/// use that one.
pub const SHARED: u32 = 64_738;

/// The user of the VMM that was started as process `pid`, and of its live forks. No two that live at a time are the same,
/// live forks apart: a number is not given again while a session bears it, and a VMM's forks stay in the session it made.
#[must_use]
pub const fn of_vmm(pid: u32) -> u32 {
    FIRST + pid % PROCESSES
}

/// True of a user that only a VMM has.
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
