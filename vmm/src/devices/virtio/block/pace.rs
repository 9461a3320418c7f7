//! How fast a machine's disks serve their guest, all of them together: bytes and operations per second, so that neither
//! long transfers nor a flood of flushes, each a sync of the host's disk, costs the host more than the sandbox may.
//!
//! What is not served stays in the guest's memory, and the guest's programs wait, as they do for a disk that is slow.

use crate::devices::virtio::bucket::Bucket;
use sandboxvm_protocol::machine::DiskLimits;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What one request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) bytes: u64,
    pub(super) operations: u64,
}

/// The pace of one machine's disks; clones are the same. No limit to begin with.
#[derive(Debug, Clone, Default)]
pub struct DiskPace(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Per second; zero: no limit.
    bytes: AtomicU64,
    operations: AtomicU64,
    owed: Mutex<Owed>,
}

#[derive(Debug)]
struct Owed {
    bytes: Bucket,
    operations: Bucket,
}

impl Default for Shared {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            bytes: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            owed: Mutex::new(Owed { bytes: Bucket::new(now), operations: Bucket::new(now) }),
        }
    }
}

impl DiskPace {
    /// Holds the disks to `limits` from the next request on.
    pub fn limit(&self, limits: DiskLimits) {
        self.0.bytes.store(limits.rate.map_or(0, |rate| rate.bytes_per_second()), Ordering::Relaxed);
        self.0.operations.store(limits.operations.map_or(0, |count| count.per_second()), Ordering::Relaxed);
    }

    /// Bytes and operations per second.
    fn rates(&self) -> (Option<u64>, Option<u64>) {
        let rate = |limit: &AtomicU64| Some(limit.load(Ordering::Relaxed)).filter(|rate| *rate > 0);
        (rate(&self.0.bytes), rate(&self.0.operations))
    }

    /// How long to wait before the next request is served; `None`: it may be.
    pub(super) fn delay(&self) -> Option<Duration> {
        match self.rates() {
            (None, None) => None,
            rates => self.owed().delay(rates, Instant::now()),
        }
    }

    /// A request is being served.
    pub(super) fn spend(&self, cost: Cost) {
        match self.rates() {
            (None, None) => {}
            rates => self.owed().spend(rates, cost),
        }
    }

    fn owed(&self) -> MutexGuard<'_, Owed> {
        // Plain numbers, valid in every combination.
        self.0.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owed {
    fn delay(&mut self, (bytes, operations): (Option<u64>, Option<u64>), now: Instant) -> Option<Duration> {
        let bytes = bytes.and_then(|rate| self.bytes.delay(rate, now));
        let operations = operations.and_then(|rate| self.operations.delay(rate, now));
        bytes.max(operations)
    }

    /// What is not limited is not held against a later limit.
    fn spend(&mut self, (bytes, operations): (Option<u64>, Option<u64>), cost: Cost) {
        if bytes.is_some() {
            self.bytes.spend(cost.bytes);
        }
        if operations.is_some() {
            self.operations.spend(cost.operations);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn owed(now: Instant) -> Owed {
        Owed { bytes: Bucket::new(now), operations: Bucket::new(now) }
    }

    #[test]
    fn the_slower_of_both_rates_decides() {
        let start = Instant::now();
        let rates = (Some(MIB), Some(100));
        let mut many = owed(start);
        (0..125).for_each(|_| many.spend(rates, Cost { bytes: 0, operations: 1 }));
        assert_eq!(many.delay(rates, start), Some(Duration::from_secs(1)));
        let mut long = owed(start);
        long.spend(rates, Cost { bytes: 9 * MIB / 4, operations: 1 });
        assert_eq!(long.delay(rates, start), Some(Duration::from_secs(2)));
        assert_eq!(long.delay(rates, start + Duration::from_secs(2)), None);
    }

    #[test]
    fn without_a_limit_nothing_waits_and_nothing_is_held_against_a_later_one() {
        let pace = DiskPace::default();
        pace.spend(Cost { bytes: u64::MAX, operations: u64::MAX });
        assert_eq!(pace.delay(), None);
        let limits = DiskLimits { operations: 10.try_into().ok(), ..DiskLimits::default() };
        pace.limit(limits);
        assert_eq!(pace.delay(), None);
        pace.spend(Cost { bytes: u64::MAX, operations: 100 });
        // Of which a quarter of a second is free, and some moments have gone by.
        assert!(pace.clone().delay().is_some_and(|delay| delay > Duration::from_secs(9)));
        pace.limit(DiskLimits::default());
        assert_eq!(pace.delay(), None);
    }

    proptest! {
        /// However a guest goes about it, it never gets more than the rate, the burst and one request.
        #[test]
        fn no_pattern_of_requests_is_faster(
            requests in prop::collection::vec((0_u64..4 * MIB, 0_u64..400_000_000), 1..200),
        ) {
            let start = Instant::now();
            let (rate, operations) = (MIB, 50);
            let rates = (Some(rate), Some(operations));
            let mut owed = owed(start);
            let (mut now, mut served, mut count) = (start, 0, 0);
            for (bytes, later) in requests {
                now += Duration::from_nanos(later);
                while let Some(delay) = owed.delay(rates, now) {
                    prop_assert!(delay <= Duration::from_secs(4), "{delay:?}");
                    now += delay;
                }
                owed.spend(rates, Cost { bytes, operations: 1 });
                served += bytes;
                count += 1;
                let allowed = |rate: u64| (now - start).as_nanos() * u128::from(rate) / 1_000_000_000 + u128::from(rate / 4);
                prop_assert!(u128::from(served) <= allowed(rate) + u128::from(4 * MIB));
                prop_assert!(count <= allowed(operations) + 1);
            }
        }
    }
}
