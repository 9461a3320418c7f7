//! Limits how many sandboxes are started at a time: in all, and for each key. A start holds its permit for the work of the
//! host alone, and returns it before it waits for a guest, whose speed is not ours to bound.

use crate::access::keys::KeyId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Maximum time that a start waits for its turn. Its client is then told to try again.
const TURN_WITHIN: Duration = Duration::from_secs(120);

/// Why a start got no turn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartsError {
    #[error("too many sandboxes are being started; none could begin within {} s", TURN_WITHIN.as_secs())]
    TooMany,
    #[error("the server is shutting down; try again in a moment")]
    ShuttingDown,
}

#[derive(Debug)]
pub(crate) struct Starts {
    all: Arc<Semaphore>,
    /// Maximum for one key: half of all, so that no key can keep the others from starting.
    most_of_one: usize,
    own: Mutex<HashMap<KeyId, Weak<Semaphore>>>,
}

/// A place among the starts under way; dropping it lets the next start begin.
#[derive(Debug)]
pub(crate) struct StartPermit {
    _of_key: OwnedSemaphorePermit,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Starts {
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { all: Arc::new(Semaphore::new(most)), most_of_one: (most / 2).max(1), own: Mutex::default() }
    }

    /// Waits for a place among the starts of this key, then among all starts; first come, first served.
    pub(crate) async fn begin(&self, key: &KeyId) -> Result<StartPermit, StartsError> {
        let turn = async {
            // The key's own first: those that wait for it must not hold a place of all.
            let of_key = self.of(key).acquire_owned().await.map_err(|_| StartsError::ShuttingDown)?;
            let of_all = Arc::clone(&self.all).acquire_owned().await.map_err(|_| StartsError::ShuttingDown)?;
            Ok(StartPermit { _of_key: of_key, _of_all: Some(of_all) })
        };
        timeout(TURN_WITHIN, turn).await.map_err(|_| StartsError::TooMany)?
    }

    /// Waits for a place among the starts of this key alone: for work that includes a wait for guests.
    pub(crate) async fn begin_own(&self, key: &KeyId) -> Result<StartPermit, StartsError> {
        let turn = timeout(TURN_WITHIN, self.of(key).acquire_owned()).await.map_err(|_| StartsError::TooMany)?;
        Ok(StartPermit { _of_key: turn.map_err(|_| StartsError::ShuttingDown)?, _of_all: None })
    }

    fn of(&self, key: &KeyId) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = own.get(key).and_then(Weak::upgrade) {
            return known;
        }
        // Only those of keys with a start under way are kept.
        own.retain(|_, semaphore| semaphore.strong_count() > 0);
        let made = Arc::new(Semaphore::new(self.most_of_one));
        own.insert(key.clone(), Arc::downgrade(&made));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::time::Instant;

    fn key(name: &str) -> KeyId {
        KeyId(name.to_owned())
    }

    #[tokio::test]
    async fn one_key_has_at_most_half_of_the_starts() {
        let starts = Starts::new(4);
        let (greedy, other) = (key("greedy"), key("other"));
        let held = [starts.begin(&greedy).await.unwrap(), starts.begin(&greedy).await.unwrap()];
        assert!(starts.begin(&greedy).now_or_never().is_none(), "a third of the same key waits");
        let others = [starts.begin(&other).await.unwrap(), starts.begin(&other).await.unwrap()];
        assert!(starts.begin(&key("third")).now_or_never().is_none(), "four are all there are");
        drop((held, others));
        drop(starts.begin(&key("third")).await.unwrap());
        assert_eq!(starts.own.lock().unwrap().len(), 1, "keys without a start are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_its_turn_only_so_long() {
        let starts = Starts::new(1);
        let _held = starts.begin(&key("a")).await.unwrap();
        let begun = Instant::now();
        assert!(matches!(starts.begin(&key("b")).await, Err(StartsError::TooMany)));
        assert_eq!(begun.elapsed().as_secs(), TURN_WITHIN.as_secs());
        assert!(matches!(starts.begin_own(&key("a")).await, Err(StartsError::TooMany)));
        assert_eq!(begun.elapsed().as_secs(), 2 * TURN_WITHIN.as_secs());
        drop(starts.begin_own(&key("b")).await.unwrap());
    }
}
