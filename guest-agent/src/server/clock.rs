//! The clock deadlines are kept by: monotonic, so that setting the time or restoring a machine moves none of them.

use std::mem::MaybeUninit;
use std::time::Duration;

/// Monotonic time in nanoseconds; in a guest, no system call. By libc, which has the vDSO from its start: rustix opens a
/// file of /proc to find it, on older kernels.
pub(super) fn now() -> u64 {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: writes one timespec, which it is given.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr()) } != 0 {
        // Never: every Linux has this clock.
        return 0;
    }
    // SAFETY: written, since the call did not fail.
    let now = unsafe { now.assume_init() };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// The time `wait` from now.
pub(super) fn later(wait: Duration) -> u64 {
    now().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}
