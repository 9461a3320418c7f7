//! Fills `metering`: takes samples of running sandboxes, and counts machines that ended by themselves.

use super::{entry::Entry, error::RegistryError, state::Registry};
use crate::metering::{
    ends::{Ended, Ends, how},
    samples::EVERY,
};
use sandboxvm_manager::State;

impl Registry {
    /// Takes samples of all sandboxes, indefinitely.
    pub(crate) async fn keep_samples(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            for entry in self.entries() {
                self.notice_removal(&entry);
                self.keep_network(&entry).await;
                if let Err(error) = self.sample(&entry) {
                    tracing::debug!(sandbox = %entry.id, %error, "cannot take a sample");
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
