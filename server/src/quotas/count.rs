//! Counts what a key has together with what is being made for it, so that concurrent requests cannot exceed a quota that
//! sequential requests could not.

use crate::access::keys::KeyId;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

#[derive(Debug, Default)]
pub(crate) struct Quota {
    making: Mutex<HashMap<KeyId, u32>>,
}

/// A reservation; what is left of it is returned when it is dropped.
#[derive(Debug)]
pub(crate) struct Reserved<'q> {
    quota: &'q Quota,
    key: KeyId,
    left: u32,
}

impl Quota {
    /// Reserves `more` where the key then has no more than `most`; else says how many it has. `there` counts those that
    /// are there.
    pub(crate) fn reserve(
        &self,
        key: &KeyId,
        more: u32,
        most: u32,
        there: impl FnOnce() -> usize,
    ) -> Result<Reserved<'_>, u32> {
        let mut making = self.making();
        let pending = making.get(key).copied().unwrap_or(0);
        let has = u32::try_from(there()).unwrap_or(u32::MAX).saturating_add(pending);
        if has.saturating_add(more) > most {
            return Err(has);
        }
        making.insert(key.clone(), pending + more);
        Ok(Reserved { quota: self, key: key.clone(), left: more })
    }

    fn making(&self) -> MutexGuard<'_, HashMap<KeyId, u32>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved<'_> {
    /// One of them is there from now on, as `add` does it: it is counted once at every moment.
    pub(crate) fn becomes<T>(&mut self, add: impl FnOnce() -> T) -> T {
        let mut making = self.quota.making();
        self.left -= take(&mut making, &self.key, self.left.min(1));
        add()
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        take(&mut self.quota.making(), &self.key, self.left);
    }
}

fn take(making: &mut HashMap<KeyId, u32>, key: &KeyId, count: u32) -> u32 {
    if let Some(pending) = making.get_mut(key) {
        *pending = pending.saturating_sub(count);
        if *pending == 0 {
            making.remove(key);
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_count_until_used_or_dropped() {
        let (quota, key, other) = (Quota::default(), KeyId("1".into()), KeyId("2".into()));
        let first = quota.reserve(&key, 1, 2, || 0).unwrap();
        let mut second = quota.reserve(&key, 1, 2, || 0).unwrap();
        assert_eq!(quota.reserve(&key, 1, 2, || 0).unwrap_err(), 2);
        drop(quota.reserve(&other, 2, 2, || 0).unwrap());
        // One became a sandbox, the other was given up.
        second.becomes(|| ());
        drop(second);
        assert_eq!(quota.reserve(&key, 1, 2, || 1).unwrap_err(), 2);
        drop(first);
        drop(quota.reserve(&key, 1, 2, || 1).unwrap());
        assert!(quota.making().is_empty());
    }
}
