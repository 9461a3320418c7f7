//! Answers that were given lately, so that a guest that asks the same question without end does not make its resolver ask.
//! It holds what name servers said; what of it the guest may see is decided each time.

use super::upstream_answer::Found;
use domain::base::iana::Rtype;
use sandboxvm_egress_policy::name::DomainName;
use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

/// Maximum number of answers.
const MAX_ANSWERS: usize = 512;

/// Maximum number of records of all answers.
const MAX_RECORDS: usize = 4096;

/// Shortest time for which an answer is kept, whatever it says.
pub const MIN_LIFE: Duration = Duration::from_secs(5);

/// Longest time for which an answer is kept.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// Longest time for which it is kept that there is nothing.
const MAX_NEGATIVE: Duration = Duration::from_secs(300);

/// A name and a type.
pub type Key = (DomainName, Rtype);

/// An answer, and when it came.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The answer.
    pub found: Rc<Found>,
    /// When it came.
    pub since: Instant,
}

impl Kept {
    fn life(&self) -> Duration {
        let is_negative = self.found.is_missing || self.found.records.is_empty();
        let longest = if is_negative { MAX_NEGATIVE } else { MAX_LIFE };
        Duration::from_secs(self.found.ttl.into()).clamp(MIN_LIFE, longest)
    }
}

/// The answers.
#[derive(Debug, Default)]
pub struct Cache {
    answers: HashMap<Key, Kept>,
    /// In the order in which they came.
    order: VecDeque<Key>,
    records: usize,
    /// The tenant's resolvers from which they are.
    resolvers: Vec<IpAddr>,
}

impl Cache {
    /// Forgets everything if these are not the resolvers that were asked.
    pub fn use_resolvers(&mut self, resolvers: &[IpAddr]) {
        if self.resolvers != resolvers {
            *self = Self { resolvers: resolvers.to_vec(), ..Self::default() };
        }
    }

    /// Returns an answer that is still valid.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Kept> {
        let kept = self.answers.get(key)?;
        (now.saturating_duration_since(kept.since) < kept.life()).then(|| kept.clone())
    }

    /// Keeps an answer, in place of the oldest if there is no room.
    pub fn put(&mut self, key: Key, kept: Kept) {
        self.remove(&key);
        self.records += kept.found.records.len();
        self.order.push_back(key.clone());
        self.answers.insert(key, kept);
        while self.answers.len() > MAX_ANSWERS || self.records > MAX_RECORDS {
            let Some(oldest) = self.order.front().cloned() else { break };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(kept) = self.answers.remove(key) {
            self.records -= kept.found.records.len();
            self.order.retain(|other| other != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ttl: u32, is_missing: bool) -> Rc<Found> {
        Rc::new(Found { is_missing, records: Vec::new(), ttl })
    }

    fn key(number: usize) -> Key {
        (format!("n{number}.example").parse().unwrap(), Rtype::A)
    }

    #[test]
    fn answers_have_a_shortest_and_a_longest_life() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for (ttl, life) in [(0, 5), (100, 100), (u32::MAX, 300)] {
            cache.put(key(1), Kept { found: found(ttl, true), since: now });
            let just = Duration::from_millis(1);
            assert!(cache.get(&key(1), now + Duration::from_secs(life) - just).is_some(), "{ttl}");
            assert!(cache.get(&key(1), now + Duration::from_secs(life)).is_none(), "{ttl}");
        }
    }

    #[test]
    fn a_guest_that_asks_without_end_takes_bounded_memory() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..MAX_ANSWERS * 3 {
            cache.put(key(number % (MAX_ANSWERS * 2)), Kept { found: found(60, false), since: now });
        }
        assert_eq!((cache.answers.len(), cache.order.len()), (MAX_ANSWERS, MAX_ANSWERS));
        cache.use_resolvers(&[[9, 9, 9, 9].into()]);
        assert!(cache.answers.is_empty() && cache.order.is_empty() && cache.records == 0);
    }
}
