//! Requests in a time, by key: a bucket of ten seconds' worth that fills at the key's rate (a token bucket).

use super::keys::KeyId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A client may do so many seconds' worth at once.
const BURST_SECONDS: f64 = 10.0;

/// See the module. Memory is bounded by the number of keys.
#[derive(Debug, Default)]
pub(crate) struct RateLimits {
    buckets: Mutex<HashMap<KeyId, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimits {
    /// Takes one request at `rate` a second out of the key's bucket, or says how long until it may come again.
    pub(crate) fn take(&self, key: &KeyId, rate: u32, now: Instant) -> Result<(), Duration> {
        let rate = f64::from(rate.max(1));
        let capacity = rate * BURST_SECONDS;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(key.clone()).or_insert(Bucket { left: capacity, at: now });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + since * rate).min(capacity);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.left) / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_burst_then_its_rate_and_takes_nothing_from_another() {
        let (limits, start) = (RateLimits::default(), Instant::now());
        let (one, two) = (KeyId("1".into()), KeyId("2".into()));
        for _ in 0..20 {
            limits.take(&one, 2, start).unwrap();
        }
        let wait = limits.take(&one, 2, start).unwrap_err();
        assert!(wait <= Duration::from_millis(500) && !wait.is_zero(), "{wait:?}");
        limits.take(&two, 2, start).unwrap();
        limits.take(&one, 2, start + wait).unwrap();
        assert!(limits.take(&one, 2, start + wait).is_err());
    }
}
