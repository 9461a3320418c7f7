//! How fast the device takes packets from the guest: a leaky bucket over everything that the transmit queue holds, headers
//! included, so that neither output nor a flood of empty packets costs the host more than the sandbox may.
//!
//! What is not taken stays in the guest's memory, and the guest's writers wait, as they do for a client that is slow.

use super::{limits::Limits, packet::HEADER_SIZE};
use crate::devices::virtio::bucket::Bucket;
use sandboxvm_protocol::machine::OutputRate;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Maximum rate at which a guest may send. Clones share it: the control plane sets it, the device reads it. Unlimited at
/// first.
#[derive(Debug, Clone, Default)]
pub struct OutputLimit(Arc<AtomicU64>);

impl OutputLimit {
    /// From the next packet on.
    pub fn set(&self, rate: OutputRate) {
        self.0.store(rate.bytes_per_second(), Ordering::Relaxed);
    }

    /// In bytes a second.
    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }
}

/// Bytes taken that the limit has not yet paid for.
#[derive(Debug)]
pub(super) struct Pace {
    limit: OutputLimit,
    bucket: Bucket,
}

impl Pace {
    pub(super) fn new(limit: OutputLimit, now: Instant) -> Self {
        Self { limit, bucket: Bucket::new(now) }
    }

    /// What was taken before is another machine's: this one was put back.
    pub(super) fn forget(&mut self, now: Instant) {
        self.bucket = Bucket::new(now);
    }

    /// How long to wait before the next packet is taken; `None`: it may be taken. One packet is owed at most beyond the
    /// burst, so it is a second or so at the least rate.
    pub(super) fn delay(&mut self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        self.bucket.delay(self.limit.get()?, now())
    }

    /// A packet in a buffer of so many bytes was taken. No less than a header is charged, and no more than can be in one,
    /// whatever lengths a guest states.
    pub(super) fn spend(&mut self, buffer: usize) {
        let bytes = buffer.clamp(HEADER_SIZE, HEADER_SIZE + Limits::window(0) as usize);
        if self.limit.get().is_some() {
            self.bucket.spend(bytes as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::bucket::{BURST, LEAST_DELAY};
    use proptest::prelude::*;

    const RATE: u64 = OutputRate::MIN;

    /// Takes so many bytes, in packets of half the burst.
    fn spend(pace: &mut Pace, bytes: u64) {
        let packet = usize::try_from(RATE / BURST / 2).unwrap();
        let packets = bytes / (RATE / BURST / 2);
        (0..packets).for_each(|_| pace.spend(packet));
    }

    fn pace(now: Instant) -> Pace {
        let limit = OutputLimit::default();
        let pace = Pace::new(limit.clone(), now);
        limit.set(OutputRate::try_from(RATE).unwrap());
        pace
    }

    #[test]
    fn without_a_limit_nothing_waits_and_nothing_is_held_against_a_later_one() {
        let start = Instant::now();
        let mut pace = Pace::new(OutputLimit::default(), start);
        pace.spend(usize::MAX);
        assert_eq!(pace.delay(|| unreachable!("the time does not matter")), None);
        pace.limit.set(OutputRate::try_from(RATE).unwrap());
        assert_eq!(pace.delay(|| start), None);
    }

    #[test]
    fn a_quiet_guest_may_send_at_once_and_then_waits() {
        let start = Instant::now();
        let mut pace = pace(start);
        spend(&mut pace, RATE / BURST);
        assert_eq!(pace.delay(|| start), None);
        spend(&mut pace, RATE);
        assert_eq!(pace.delay(|| start), Some(Duration::from_secs(1)));
        let second = start + Duration::from_millis(999);
        assert_eq!(pace.delay(|| second), Some(Duration::from_millis(1)));
        assert_eq!(pace.delay(|| start + Duration::from_secs(1)), None);
        // Having sent nothing for long saves up no more than the burst.
        let hour = start + Duration::from_secs(3600);
        assert_eq!(pace.delay(|| hour), None);
        spend(&mut pace, RATE / BURST + RATE);
        assert_eq!(pace.delay(|| hour), Some(Duration::from_secs(1)));
    }

    #[test]
    fn no_stated_length_stops_a_guest_for_long_and_none_is_free() {
        let start = Instant::now();
        let mut huge = pace(start);
        huge.spend(usize::MAX);
        assert!(huge.delay(|| start) < Some(Duration::from_millis(800)));
        let mut empty = pace(start);
        let packets = usize::try_from(RATE / BURST).unwrap() / HEADER_SIZE + 1;
        (0..packets).for_each(|_| empty.spend(0));
        assert_eq!(empty.delay(|| start), Some(LEAST_DELAY));
    }

    proptest! {
        /// However a guest goes about it, it never sends more than the rate, the burst and one packet.
        #[test]
        fn no_pattern_of_packets_is_faster(
            packets in prop::collection::vec((1_usize..70_000, 0_u64..400_000_000), 1..200),
        ) {
            let start = Instant::now();
            let mut pace = pace(start);
            let (mut now, mut sent) = (start, 0);
            for (bytes, later) in packets {
                now += Duration::from_nanos(later);
                while let Some(delay) = pace.delay(|| now) {
                    prop_assert!(delay <= Duration::from_secs(1), "{delay:?} for a packet of 70 kB");
                    now += delay;
                }
                pace.spend(bytes);
                sent += bytes as u64;
                let allowed = (now - start).as_nanos() * u128::from(RATE) / 1_000_000_000;
                prop_assert!(u128::from(sent) <= allowed + u128::from(RATE / BURST) + 70_000);
            }
        }
    }
}
