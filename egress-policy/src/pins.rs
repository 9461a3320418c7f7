//! Which addresses the resolver gave to a sandbox for which name, and until when. A pin belongs to one sandbox. A flow
//! that is open is not cut because its pin expired: pins decide only when a flow begins.

use crate::name::DomainName;
use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

/// Shortest life of a pin: clients look a name up and connect some time later.
pub const MIN_LIFE: Duration = Duration::from_secs(60);

/// Longest life of a pin: a TTL of weeks does not keep an address open that the name left long ago.
pub const MAX_LIFE: Duration = Duration::from_secs(3600);

/// Most pins of a sandbox. The oldest is dropped for a new one beyond that.
pub const MAX_PINS: usize = 8192;

/// Most names of one address: a decision looks at each of them. The oldest is dropped for a new one beyond that.
pub const MAX_NAMES: usize = 32;

/// The pins of a sandbox.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    until: HashMap<(IpAddr, DomainName), Instant>,
    /// In the order in which they were first made.
    order: VecDeque<(IpAddr, DomainName)>,
    /// The names of an address.
    names: HashMap<IpAddr, Vec<DomainName>>,
}

impl Pins {
    /// Notes that `address` was an answer to a question for `name`, with this TTL. The name is the one that was asked for,
    /// not one that a CNAME led to. The pin lives for the TTL, within [`MIN_LIFE`] and [`MAX_LIFE`]; a pin that is there lives
    /// for the longer of both.
    pub fn pin(&mut self, name: &DomainName, address: IpAddr, ttl: Duration, now: Instant) {
        self.pin_for(name, address, ttl.max(MIN_LIFE), now);
    }

    /// Notes a pin that another process had, and that lives for `left` more, at most [`MAX_LIFE`]: a copy prolongs no pin.
    pub fn adopt(&mut self, name: &DomainName, address: IpAddr, left: Duration, now: Instant) {
        self.pin_for(name, address, left, now);
    }

    fn pin_for(&mut self, name: &DomainName, address: IpAddr, life: Duration, now: Instant) {
        let until = now + life.min(MAX_LIFE);
        let key = (address, name.clone());
        if let Some(known) = self.until.get_mut(&key) {
            *known = until.max(*known);
            return;
        }
        if let Some(oldest) =
            self.names.get(&address).filter(|names| names.len() >= MAX_NAMES).and_then(|names| names.first())
        {
            let oldest = (address, oldest.clone());
            self.order.retain(|key| *key != oldest);
            self.forget(&oldest);
        }
        while self.until.len() >= MAX_PINS {
            let Some(oldest) = self.order.pop_front() else { break };
            self.forget(&oldest);
        }
        self.until.insert(key.clone(), until);
        self.order.push_back(key);
        self.names.entry(address).or_default().push(name.clone());
    }

    /// Returns the names for which `address` is pinned now, the oldest first: at most [`MAX_NAMES`]. The address is one in its
    /// plain form (see [`Floor::check`](crate::floor::Floor::check)), as when it was pinned.
    #[must_use]
    pub fn names_of(&self, address: IpAddr, now: Instant) -> Vec<DomainName> {
        let names = self.names.get(&address).map(Vec::as_slice).unwrap_or_default();
        let is_alive =
            |name: &&DomainName| self.until.get(&(address, (*name).clone())).is_some_and(|until| now < *until);
        names.iter().filter(is_alive).cloned().collect()
    }

    /// Returns the pins that are alive, the newest first, each with the time that is left of it.
    pub fn alive(&self, now: Instant) -> impl Iterator<Item = (IpAddr, &DomainName, Duration)> {
        self.order.iter().rev().filter_map(move |key| {
            let left = self.until.get(key)?.checked_duration_since(now)?;
            (!left.is_zero()).then_some((key.0, &key.1, left))
        })
    }

    /// Drops the pins that have expired. Every other function ignores them anyway, except [`Self::len`].
    pub fn expire(&mut self, now: Instant) {
        let expired: Vec<_> =
            self.until.iter().filter(|(_, until)| **until <= now).map(|(key, _)| key.clone()).collect();
        for key in &expired {
            self.forget(key);
        }
        self.order.retain(|key| self.until.contains_key(key));
    }

    /// Returns how many there are, the expired ones that were not dropped yet included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Returns true if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    fn forget(&mut self, key: &(IpAddr, DomainName)) {
        self.until.remove(key);
        if let Some(names) = self.names.get_mut(&key.0) {
            names.retain(|name| *name != key.1);
            if names.is_empty() {
                self.names.remove(&key.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([198, 51, 100, last])
    }

    #[test]
    fn an_address_has_the_names_that_led_to_it_until_they_expire() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        pins.pin(&name("a.example"), address(1), Duration::from_secs(100), now);
        pins.pin(&name("b.example"), address(1), Duration::from_secs(200), now);
        assert_eq!(pins.names_of(address(1), now), [name("a.example"), name("b.example")]);
        assert_eq!(pins.names_of(address(1), now + Duration::from_secs(100)), [name("b.example")]);
        assert!(pins.names_of(address(2), now).is_empty());
        let alive: Vec<_> = pins.alive(now + Duration::from_secs(100)).collect();
        assert_eq!(alive, [(address(1), &name("b.example"), Duration::from_secs(100))]);
        pins.expire(now + Duration::from_secs(200));
        assert!(pins.is_empty() && pins.order.is_empty() && pins.names.is_empty());
    }

    #[test]
    fn lives_have_a_floor_and_a_ceiling_and_are_only_prolonged() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        pins.pin(&name("a.example"), address(1), Duration::ZERO, now);
        assert_eq!(pins.names_of(address(1), now + MIN_LIFE - Duration::from_nanos(1)).len(), 1);
        assert!(pins.names_of(address(1), now + MIN_LIFE).is_empty());
        pins.pin(&name("a.example"), address(1), Duration::from_secs(u64::from(u32::MAX)), now);
        pins.pin(&name("a.example"), address(1), Duration::ZERO, now);
        assert_eq!(pins.names_of(address(1), now + MAX_LIFE - Duration::from_nanos(1)).len(), 1);
        assert!(pins.names_of(address(1), now + MAX_LIFE).is_empty());
        pins.adopt(&name("b.example"), address(2), Duration::from_secs(1), now);
        assert!(pins.names_of(address(2), now + Duration::from_secs(1)).is_empty());
    }

    #[test]
    fn a_guest_that_asks_without_end_takes_bounded_memory() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        let of = |number: usize| IpAddr::from((number as u128).to_be_bytes());
        for number in 0..MAX_PINS * 2 {
            pins.pin(&name("a.example"), of(number), MIN_LIFE, now);
        }
        assert_eq!((pins.len(), pins.order.len(), pins.names.len()), (MAX_PINS, MAX_PINS, MAX_PINS));
        assert_eq!(pins.names_of(of(MAX_PINS * 2 - 1), now), [name("a.example")]);
        let mut pins = Pins::default();
        for number in 0..MAX_NAMES * 2 {
            pins.pin(&name(&format!("n{number}.example")), address(1), MIN_LIFE, now);
        }
        assert_eq!((pins.len(), pins.order.len(), pins.names[&address(1)].len()), (MAX_NAMES, MAX_NAMES, MAX_NAMES));
        assert!(pins.names_of(address(1), now).contains(&name(&format!("n{}.example", MAX_NAMES * 2 - 1))));
    }
}
