//! How many machines of this server ended by themselves in another way than their guests or clients wanted: what an operator
//! looks at to see attempts to leave a machine. Each machine is counted once.

use super::entry::Entry;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
};
use sandboxvm_manager::State;
use sandboxvm_protocol::vmm::ExitReason;

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum How {
    /// Its VMM made a system call that is not left to it.
    ForbiddenCall,
    /// Its VMM vanished without a word: killed, or out of memory.
    Vanished,
    /// The guest panicked, reset itself, or did what no guest does.
    Guest,
    /// The host failed it.
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Ended {
    how: How,
}

/// See the module.
pub(crate) type Ends = Family<Ended, Counter>;

/// Counts the end of a sandbox's machine where there was one and it was not orderly.
pub(super) fn note(ends: &Ends, entry: &Entry, state: &State) {
    let Some(how) = how(state) else { return };
    if entry.counts_its_end() {
        ends.get_or_create(&Ended { how }).inc();
        tracing::warn!(sandbox = %entry.id, %state, "a machine ended unexpectedly");
    }
}

fn how(state: &State) -> Option<How> {
    match state {
        State::Creating | State::Running | State::Paused => None,
        State::Dead => Some(How::Vanished),
        State::Exited { reason } if reason.is_orderly() => None,
        State::Exited { reason } => Some(match reason {
            ExitReason::ForbiddenCall { .. } => How::ForbiddenCall,
            ExitReason::HostFailure { .. } | ExitReason::BadConfig { .. } | ExitReason::EntryFailure { .. } => {
                How::Host
            }
            _ => How::Guest,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::record::tests::example;
    use sandboxvm_protocol::vmm::VmmThread;

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
