//! How often something may happen, by key or by client address: a bucket of some seconds' worth that fills at a rate (a token
//! bucket).

use super::keys::KeyId;
use crate::listen::connections::Peer;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A client may do so many seconds' worth at once.
const BURST_SECONDS: f64 = 10.0;
/// Keys and tokens that do not match, of one client address, in a second.
const FAILURES_PER_SECOND: u32 = 2;
/// Addresses that are remembered; far more than fail within [`BURST_SECONDS`].
const MAX_PEERS: usize = 1 << 16;

/// Requests of keys. Memory is bounded by the number of keys.
#[derive(Debug, Default)]
pub(crate) struct RateLimits(Buckets<KeyId>);

/// Keys and tokens that did not match, by client address. Those that match are never refused for the failures of others: a
/// proxy's address is that of all its clients.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    of_peers: Buckets<Option<Peer>>,
    /// How many there were.
    pub(crate) count: Family<Failed, Counter>,
}

/// What did not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Credential {
    Key,
    Token,
    Signature,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Failed {
    credential: Credential,
}

#[derive(Debug)]
struct Buckets<K>(Mutex<HashMap<K, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimits {
    /// Takes one request at `rate` a second out of the key's bucket, or says how long until it may come again.
    pub(crate) fn take(&self, key: &KeyId, rate: u32, now: Instant) -> Result<(), Duration> {
        self.0.take(key.clone(), rate, now, usize::MAX)
    }
}

impl Failures {
    /// Counts one, or says how long until the next is answered as one.
    pub(crate) fn note(&self, credential: Credential, peer: Option<&Peer>, now: Instant) -> Result<(), Duration> {
        self.count.get_or_create(&Failed { credential }).inc();
        self.of_peers.take(peer.copied(), FAILURES_PER_SECOND, now, MAX_PEERS)
    }
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// Among at most `most` buckets: where there is none left, full ones are forgotten, and where there are none, it is refused.
    fn take(&self, of: K, rate: u32, now: Instant, most: usize) -> Result<(), Duration> {
        let rate = f64::from(rate.max(1));
        let capacity = rate * BURST_SECONDS;
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= most && !buckets.contains_key(&of) {
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at).as_secs_f64() < BURST_SECONDS);
            if buckets.len() >= most {
                return Err(Duration::from_secs_f64(BURST_SECONDS));
            }
        }
        let bucket = buckets.entry(of).or_insert(Bucket { left: capacity, at: now });
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
    use std::net::IpAddr;

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

    #[test]
    fn failures_of_one_address_are_slowed_and_no_address_takes_memory_for_good() {
        let (failures, start) = (Failures::default(), Instant::now());
        let peer = |last| Peer::from(IpAddr::from([192, 0, 2, last]));
        let note = |last| failures.note(Credential::Key, Some(&peer(last)), start);
        assert_eq!((0..100).filter(|_| note(1).is_err()).count(), 80);
        note(2).unwrap();
        assert_eq!(failures.count.get_or_create(&Failed { credential: Credential::Key }).get(), 101);

        let buckets = Buckets::<u32>::default();
        for of in 0..3 {
            buckets.take(of, 1, start, 3).unwrap();
        }
        assert!(buckets.take(3, 1, start, 3).is_err());
        buckets.take(2, 1, start, 3).unwrap();
        buckets.take(3, 1, start + Duration::from_secs(11), 3).unwrap();
        assert_eq!(buckets.0.lock().unwrap().len(), 1);
    }
}
