//! Fills `metering`: takes samples of running sandboxes, and counts machines that ended by themselves.

use super::{entry::Entry, error::RegistryError, state::Registry};
use crate::{
    access::keys::KeyId,
    metering::{
        ends::{Ended, Ends, how},
        samples::EVERY,
    },
};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use sandboxvm_manager::State;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::time::MissedTickBehavior;

/// The keys whose sandboxes are being seen to.
#[derive(Debug, Default)]
struct Rounds(HashSet<KeyId>);

impl Rounds {
    /// Begins a round of each key whose last one has ended.
    fn begin(&mut self, entries: Vec<Arc<Entry>>) -> HashMap<KeyId, Vec<Arc<Entry>>> {
        let mut begun: HashMap<KeyId, Vec<Arc<Entry>>> = HashMap::new();
        for entry in entries {
            let owner = entry.record().owner.clone();
            if !self.0.contains(&owner) {
                begun.entry(owner).or_default().push(entry);
            }
        }
        self.0.extend(begun.keys().cloned());
        begun
    }

    fn ended(&mut self, key: &KeyId) {
        self.0.remove(key);
    }
}

impl Registry {
    /// Takes samples of all sandboxes, indefinitely. Waits for none of them.
    pub(crate) async fn keep_samples(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            for entry in self.entries() {
                self.notice_removal(&entry);
                if let Err(error) = self.sample(&entry) {
                    tracing::debug!(sandbox = %entry.id, %error, "cannot take a sample");
                }
            }
        }
    }

    /// Sees to the networks of all sandboxes, indefinitely. Those of one key are seen to one after the other, and each key's
    /// apart: a process that does not answer delays what belongs to its own key.
    pub(crate) async fn keep_networks(&self) {
        let mut rounds = Rounds::default();
        let mut under_way: FuturesUnordered<BoxFuture<'_, KeyId>> = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(key) = under_way.next() => rounds.ended(&key),
                _ = ticks.tick() => {
                    for (key, entries) in rounds.begin(self.entries()) {
                        under_way.push(Box::pin(async move {
                            for entry in entries {
                                self.keep_network(&entry).await;
                            }
                            key
                        }));
                    }
                }
            }
        }
    }

    /// Forgets a sandbox that another process removed, unless a call is about to find that out.
    fn notice_removal(&self, entry: &Entry) {
        let Ok(_change) = entry.change.try_lock() else { return };
        if matches!(self.sandbox(entry), Err(RegistryError::Unknown(_)))
            && !entry.is_gone()
            && let Err(error) = self.lose(entry)
        {
            tracing::warn!(sandbox = %entry.id, %error, "cannot remove the remaining files of a removed sandbox");
        }
    }

    /// Takes one of a running sandbox.
    pub(crate) fn sample(&self, entry: &Entry) -> Result<(), RegistryError> {
        if entry.record().is_paused() {
            return Ok(());
        }
        let sandbox = self.sandbox(entry)?;
        match sandbox.usage()? {
            Some(usage) => entry.samples.take(&usage, sandbox.record(), &sandbox.path(), entry.traffic.sum()),
            None => self.note_end(entry, &sandbox.state()?),
        }
        Ok(())
    }

    /// Counts the end of a sandbox's machine where there was one and it was not orderly.
    pub(super) fn note_end(&self, entry: &Entry, state: &State) {
        note(&self.ends, entry, state);
    }
}

fn note(ends: &Ends, entry: &Entry, state: &State) {
    let Some(how) = how(state) else { return };
    if entry.counts_its_end() {
        ends.get_or_create(&Ended { how }).inc();
        tracing::warn!(sandbox = %entry.id, %state, "a machine ended unexpectedly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metering::ends::How, registry::record::tests::example};
    use sandboxvm_manager::{ExitReason, VmmThread};

    #[test]
    fn a_key_whose_round_does_not_end_delays_no_other() {
        let of = |id: &str, key: &str| {
            let mut record = example(id);
            record.owner = KeyId(key.to_owned());
            Entry::new(record)
        };
        let all = || vec![of("abcdefgh", "a"), of("abcdefgi", "b"), of("abcdefgj", "a")];
        let mut rounds = Rounds::default();
        let begun = rounds.begin(all());
        assert_eq!(begun.values().map(Vec::len).sum::<usize>(), 3);
        rounds.ended(&KeyId("b".into()));
        // The round of "a" is still under way.
        assert_eq!(rounds.begin(all()).into_keys().collect::<Vec<_>>(), [KeyId("b".into())]);
        rounds.ended(&KeyId("a".into()));
        assert_eq!(rounds.begin(all())[&KeyId("a".into())].len(), 2);
    }

    #[test]
    fn ends_that_are_not_orderly_are_counted_once_for_each_machine() {
        let (ends, entry) = (Ends::default(), Entry::new(example("abcdefgh")));
        let count = |how| ends.get_or_create(&Ended { how }).get();
        for orderly in [State::Running, State::Exited { reason: ExitReason::Stopped }] {
            note(&ends, &entry, &orderly);
        }
        let forbidden = ExitReason::ForbiddenCall { number: 41, thread: VmmThread::EventLoop };
        note(&ends, &entry, &State::Exited { reason: forbidden.clone() });
        note(&ends, &entry, &State::Exited { reason: forbidden });
        note(&ends, &Entry::new(example("abcdefgi")), &State::Dead);
        assert_eq!((count(How::ForbiddenCall), count(How::Vanished), count(How::Guest)), (1, 1, 0));
    }
}
