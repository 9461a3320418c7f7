//! Limits on concurrent work: in all, for each key, and for each sandbox. A request above a limit is rejected immediately and
//! never queued, so that a server at its limit stays fast, and no key or sandbox can take the share of the others.

use crate::access::keys::KeyId;
use sandboxvm_manager::SandboxId;
use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many places a limit has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) all: usize,
    pub(crate) of_one_key: usize,
    pub(crate) of_one_sandbox: usize,
}

/// A limit on requests of one kind.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimit {
    places: Places,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_keys: HashMap<KeyId, usize>,
    of_sandboxes: HashMap<SandboxId, usize>,
}

/// A place below a limit, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<Taken>>,
    key: KeyId,
    sandbox: Option<SandboxId>,
}

/// Whose places are all taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    Server,
    Key,
    Sandbox,
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "the server has as many requests as it works on at a time",
            Self::Key => "this API key has as many requests as it may have at a time",
            Self::Sandbox => "this sandbox has as many requests as it may have at a time",
        })
    }
}

impl ConcurrencyLimit {
    pub(crate) fn of(places: Places) -> Self {
        Self { places, taken: Arc::default() }
    }

    /// Takes a place for a request of this key, about this sandbox where it is about one.
    pub(crate) fn try_enter(&self, key: &KeyId, sandbox: Option<&SandboxId>) -> Result<Place, NoPlace> {
        let mut taken = lock(&self.taken);
        let is_full = |count: Option<&usize>, most: usize| count.copied().unwrap_or(0) >= most.max(1);
        if sandbox.is_some_and(|id| is_full(taken.of_sandboxes.get(id), self.places.of_one_sandbox)) {
            return Err(NoPlace::Sandbox);
        }
        if is_full(taken.of_keys.get(key), self.places.of_one_key) {
            return Err(NoPlace::Key);
        }
        if taken.all >= self.places.all.max(1) {
            return Err(NoPlace::Server);
        }
        taken.all += 1;
        *taken.of_keys.entry(key.clone()).or_default() += 1;
        if let Some(id) = sandbox {
            *taken.of_sandboxes.entry(id.clone()).or_default() += 1;
        }
        Ok(Place { taken: Arc::clone(&self.taken), key: key.clone(), sandbox: sandbox.cloned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.all -= 1;
        give_back(&mut taken.of_keys, &self.key);
        if let Some(id) = &self.sandbox {
            give_back(&mut taken.of_sandboxes, id);
        }
    }
}

fn give_back<K: Eq + Hash>(taken: &mut HashMap<K, usize>, of: &K) {
    if let Some(count) = taken.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            taken.remove(of);
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_and_one_sandbox_have_their_share_and_no_more() {
        let limit = ConcurrencyLimit::of(Places { all: 5, of_one_key: 3, of_one_sandbox: 2 });
        let [one, two] = ["1", "2"].map(|id| KeyId(id.into()));
        let [a, b] = ["aaaaaaaa", "bbbbbbbb"].map(|id| SandboxId::try_from(id.to_owned()).unwrap());
        let mut taken = vec![limit.try_enter(&one, Some(&a)).unwrap(), limit.try_enter(&one, Some(&a)).unwrap()];
        assert_eq!(limit.try_enter(&one, Some(&a)).unwrap_err(), NoPlace::Sandbox);
        taken.push(limit.try_enter(&one, Some(&b)).unwrap());
        assert_eq!(limit.try_enter(&one, None).unwrap_err(), NoPlace::Key);
        taken.extend([limit.try_enter(&two, None).unwrap(), limit.try_enter(&two, None).unwrap()]);
        assert_eq!(limit.try_enter(&two, None).unwrap_err(), NoPlace::Server);
        taken.clear();
        assert_eq!(limit.try_enter(&one, Some(&a)).map(drop), Ok(()));
        let taken = lock(&limit.taken);
        assert!(taken.all == 0 && taken.of_keys.is_empty() && taken.of_sandboxes.is_empty(), "{taken:?}");
    }
}
