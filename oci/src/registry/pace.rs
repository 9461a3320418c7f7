//! The minimum rate of a transfer. A host that sends or accepts one byte from time to time would
//! otherwise keep a transfer, its file and its lock without limit. Only time spent waiting for the
//! host counts, so that a slow disk is not its fault.

use std::{future::Future, time::Duration};
use tokio::time::{Instant, timeout};

/// Minimum rate in bytes per second, over each window.
pub(super) const MINIMUM_RATE: u64 = 1 << 10;

/// The rate of one transfer.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// `window` is both the time in which something has to happen, and over which the rate is
    /// measured.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, waited: Duration::ZERO, bytes: 0 }
    }

    /// Waits for `next`. Returns `None` if nothing happened within the window.
    pub(super) async fn wait<T>(&mut self, next: impl Future<Output = T>) -> Option<T> {
        let begun = Instant::now();
        let happened = timeout(self.window, next).await.ok();
        self.waited += begun.elapsed();
        happened
    }

    /// Counts bytes. Returns false if the window brought less than the minimum rate.
    pub(super) fn count(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.waited < self.window {
            return true;
        }
        let is_fast = u128::from(self.bytes) * 1000 >= u128::from(MINIMUM_RATE) * self.waited.as_millis();
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        is_fast
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn trickling_is_too_slow_and_a_pause_is_not() {
        let window = Duration::from_secs(30);
        let mut pace = Pace::new(window);
        pace.wait(sleep(Duration::from_secs(29))).await.unwrap();
        assert!(pace.count(1));
        pace.wait(sleep(Duration::from_secs(29))).await.unwrap();
        assert!(!pace.count(1));
        pace.wait(sleep(Duration::from_secs(29))).await.unwrap();
        assert!(pace.count(100_000));
        pace.wait(sleep(Duration::from_secs(29))).await.unwrap();
        assert!(pace.count(1));
        assert!(pace.wait(sleep(Duration::from_secs(31))).await.is_none());
    }
}
