//! The clock deadlines are kept by: monotonic, so that setting the time or restoring a machine moves none of them.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Monotonic time in nanoseconds; in a guest, no system call.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// The time `wait` from now.
pub(super) fn later(wait: Duration) -> u64 {
    now().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}
