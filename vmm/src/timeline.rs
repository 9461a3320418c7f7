//! When a machine came to life, as far as this process knows. Says nothing of the guest.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn now() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Nanoseconds since the Unix epoch.
#[must_use]
pub fn wall_clock() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // Neither clock is negative on a host that is up after 1970; 2^64 nanoseconds are 584 years.
    now.tv_sec.unsigned_abs().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec.unsigned_abs())
}

/// What is known before there is a machine.
#[derive(Debug, Clone, Copy)]
pub struct StartTimes {
    /// The process began. In a fork: when the child continued.
    pub process_start: u64,
    /// It was confined and waited for its machine.
    pub confined: u64,
    /// It knew which.
    pub launched: u64,
}

impl StartTimes {
    /// Of a process that was confined from its first moment: a fork.
    #[must_use]
    pub fn of_fork() -> Self {
        let now = now();
        Self { process_start: now, confined: now, launched: now }
    }
}
