//! A leaky bucket: how long a device waits before it serves a guest again that has had more than its rate. What one rate
//! counts (bytes, operations) and what is charged for is the device's.

use std::time::{Duration, Instant};

/// How long a quiet guest is served at full speed, in fractions of a second.
pub(super) const BURST: u64 = 4;
/// Waking up for each request of a fast guest would cost more than serving it.
pub(super) const LEAST_DELAY: Duration = Duration::from_millis(1);

/// What was served that the rate has not yet paid for.
#[derive(Debug)]
pub(super) struct Bucket {
    /// In units times nanoseconds a second: then nothing is lost between two moments, however close.
    owed: u128,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self { owed: 0, at: now }
    }

    /// How long to wait before the next request at `rate` units a second, which is not zero; `None`: it may be served.
    pub(super) fn delay(&mut self, rate: u64, now: Instant) -> Option<Duration> {
        let rate = u128::from(rate);
        let paid = now.saturating_duration_since(self.at).as_nanos().saturating_mul(rate);
        self.owed = self.owed.saturating_sub(paid);
        self.at = now;
        let burst = rate * Duration::from_secs(1).as_nanos() / u128::from(BURST);
        let over = self.owed.checked_sub(burst).filter(|over| *over > 0)?;
        let delay = Duration::from_nanos(u64::try_from(over.div_ceil(rate)).unwrap_or(u64::MAX));
        Some(delay.max(LEAST_DELAY))
    }

    /// So many units were served.
    pub(super) fn spend(&mut self, units: u64) {
        self.owed = self.owed.saturating_add(u128::from(units) * Duration::from_secs(1).as_nanos());
    }
}
