//! Ends sandboxes that have expired: several at a time, since one whose VMM stalls must not delay the others, and with a share
//! for each key.

use super::{entry::Entry, state::Registry};
use crate::access::keys::KeyId;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use sandboxvm_manager::SandboxId;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Time after which an end that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Ends under way at a time, in all and of one key.
const MOST_AT_ONCE: usize = 32;
const MOST_OF_ONE: usize = 4;

/// Who is being ended, by key.
#[derive(Debug, Default)]
struct Ending {
    sandboxes: HashSet<SandboxId>,
    of_key: HashMap<KeyId, usize>,
    /// Not to be tried before.
    failed: HashMap<SandboxId, Instant>,
}

impl Ending {
    /// Takes a place for it, where one is free. When one is not, another's end is waited for.
    fn begin(&mut self, entry: &Entry, owner: &KeyId) -> bool {
        let own = self.of_key.get(owner).copied().unwrap_or(0);
        if self.sandboxes.len() >= MOST_AT_ONCE || own >= MOST_OF_ONE || !self.sandboxes.insert(entry.id.clone()) {
            return false;
        }
        self.of_key.insert(owner.clone(), own + 1);
        true
    }

    fn ended(&mut self, id: &SandboxId, owner: &KeyId, failed: bool) {
        self.sandboxes.remove(id);
        if let Some(own) = self.of_key.get_mut(owner) {
            *own -= 1;
            if *own == 0 {
                self.of_key.remove(owner);
            }
        }
        if failed {
            self.failed.insert(id.clone(), Instant::now() + AFTER_FAILURE);
        }
    }
}

impl Registry {
    /// Ends sandboxes as they expire; never returns.
    pub(crate) async fn keep_time(&self) {
        let mut ending = Ending::default();
        let mut under_way: FuturesUnordered<BoxFuture<'_, (SandboxId, KeyId, bool)>> = FuturesUnordered::new();
        loop {
            let changed = self.time_changed.notified();
            let next = self.begin_ends(&mut ending, &mut under_way);
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((id, owner, failed)) = under_way.next() => ending.ended(&id, &owner, failed),
                () = changed => {}
                () = due => {}
            }
        }
    }

    /// Begins to end what is due and has a place. Returns when the next is due.
    fn begin_ends<'r>(
        &'r self,
        ending: &mut Ending,
        under_way: &mut FuturesUnordered<BoxFuture<'r, (SandboxId, KeyId, bool)>>,
    ) -> Option<Duration> {
        let (now, instant) = (SystemTime::now(), Instant::now());
        ending.failed.retain(|_, again| *again > instant);
        let mut next: Option<Duration> = None;
        for entry in self.entries() {
            let record = entry.record();
            if record.is_paused() || ending.sandboxes.contains(&entry.id) {
                continue;
            }
            let left = record.end_at.duration_since(now).unwrap_or_default();
            let rest = ending.failed.get(&entry.id).map(|again| again.saturating_duration_since(instant));
            let left = left.max(rest.unwrap_or_default());
            if !left.is_zero() {
                next = Some(next.map_or(left, |next| next.min(left)));
            } else if ending.begin(&entry, &record.owner) {
                under_way.push(self.ended(entry, record.owner).boxed());
            }
        }
        next
    }

    async fn ended(&self, entry: Arc<Entry>, owner: KeyId) -> (SandboxId, KeyId, bool) {
        let ended = self.end(&entry).await;
        if let Err(error) = &ended {
            tracing::warn!(sandbox = %entry.id, %error, "failed to end an expired sandbox, will retry");
        }
        (entry.id.clone(), owner, ended.is_err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::record::tests::example;

    #[test]
    fn one_key_has_a_share_of_the_ends_under_way_and_others_have_theirs() {
        let mut ending = Ending::default();
        let entry = |number: usize| Entry::new(example(&format!("sandbox{number:05}")));
        let (one, other) = (KeyId("1".into()), KeyId("2".into()));
        let begun = (0..10).filter(|number| ending.begin(&entry(*number), &one)).count();
        assert_eq!(begun, MOST_OF_ONE);
        assert!(ending.begin(&entry(20), &other));
        assert!(!ending.begin(&entry(20), &other), "it is being ended already");
        ending.ended(&entry(0).id, &one, true);
        assert!(ending.failed.contains_key(&entry(0).id));
        assert!(ending.begin(&entry(11), &one) && !ending.begin(&entry(12), &one));
    }
}
