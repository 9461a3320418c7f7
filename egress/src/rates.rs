//! Token buckets: how many flows, questions and bytes a guest may have in a second.

use sandboxvm_protocol::egress::EgressLimits;
use std::time::{Duration, Instant};

/// A token bucket. It holds one second of its rate.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    /// Tokens in a second.
    rate: f64,
    /// Below zero after a loan.
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// Returns a full bucket.
    #[must_use]
    pub fn new(per_second: u64, now: Instant) -> Self {
        // A rate of 2^53 bytes in a second is not a limit, so what rounding takes of it does not count.
        let rate = per_second as f64;
        Self { rate, tokens: rate, filled: now }
    }

    /// Takes one token. Returns false if there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }

    /// Takes `count` tokens, also those that are not there yet.
    pub fn lend(&mut self, count: usize, now: Instant) {
        self.fill(now);
        self.tokens -= count as f64;
    }

    /// Returns how long it takes until loans are paid back.
    pub fn debt(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        let is_in_debt = self.tokens < 0.0 && self.rate > 0.0;
        is_in_debt.then(|| Duration::from_secs_f64((-self.tokens / self.rate).min(60.0)).max(Duration::from_millis(1)))
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * self.rate).min(self.rate);
        self.filled = self.filled.max(now);
    }
}

/// The buckets of a sandbox.
#[derive(Debug, Clone)]
pub struct Rates {
    /// New flows.
    pub flows: Bucket,
    /// Questions to the resolver.
    pub queries: Bucket,
    /// Bytes from the guest, if they are limited.
    pub bytes_out: Option<Bucket>,
    /// Bytes to the guest, if they are limited.
    pub bytes_in: Option<Bucket>,
}

/// A direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the guest.
    Out,
    /// To the guest.
    In,
}

impl Rates {
    /// Returns full buckets.
    #[must_use]
    pub fn new(limits: &EgressLimits, now: Instant) -> Self {
        let bytes = |rate: u64| (rate > 0).then(|| Bucket::new(rate, now));
        Self {
            flows: Bucket::new(limits.flows_per_second.into(), now),
            queries: Bucket::new(limits.queries_per_second.into(), now),
            bytes_out: bytes(limits.bytes_out_per_second),
            bytes_in: bytes(limits.bytes_in_per_second),
        }
    }

    /// Returns how long the next byte has to wait.
    pub fn wait(&mut self, way: Way) -> Option<Duration> {
        self.bucket(way)?.debt(Instant::now())
    }

    /// Counts bytes that passed.
    pub fn passed(&mut self, way: Way, count: usize) {
        if let Some(bucket) = self.bucket(way) {
            bucket.lend(count, Instant::now());
        }
    }

    fn bucket(&mut self, way: Way) -> Option<&mut Bucket> {
        match way {
            Way::Out => self.bytes_out.as_mut(),
            Way::In => self.bytes_in.as_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_after_a_burst_of_as_many() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, start);
        assert_eq!((0..20).filter(|_| bucket.take(start)).count(), 10);
        assert_eq!((0..20).filter(|_| bucket.take(start + Duration::from_millis(500))).count(), 5);
        assert_eq!((0..20).filter(|_| bucket.take(start + Duration::from_secs(60))).count(), 10);
    }

    #[test]
    fn a_loan_is_paid_back_by_waiting() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        bucket.lend(3000, start);
        assert_eq!(bucket.debt(start), Some(Duration::from_secs(2)));
        assert_eq!(bucket.debt(start + Duration::from_secs(2)), None);
    }
}
