//! The clock of deadlines. It is monotonic, so deadlines do not change when the time is set or a
//! machine is restored.

use std::mem::MaybeUninit;
use std::time::Duration;

/// Returns the monotonic time in nanoseconds. In a guest this needs no system call. It uses libc,
/// which finds the vDSO at its start: on older kernels rustix opens a file in /proc to find it.
pub(super) fn now() -> u64 {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: writes one timespec, which it is given.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr()) } != 0 {
        // Cannot happen: every Linux has this clock.
        return 0;
    }
    // SAFETY: written, since the call did not fail.
    let now = unsafe { now.assume_init() };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Returns the time after `wait`.
pub(super) fn later(wait: Duration) -> u64 {
    now().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}
