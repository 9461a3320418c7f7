//! Counts machines that ended by themselves in a way that neither guest nor client asked for. Operators watch it for attempts
//! to escape from a machine. Each machine is counted once.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
};
use sandboxvm_manager::{ExitReason, State};
use serde::{Deserialize, Serialize};

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue, Serialize, Deserialize)]
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
    pub(crate) how: How,
}

impl How {
    const ALL: [Self; 4] = [Self::ForbiddenCall, Self::Vanished, Self::Guest, Self::Host];
}

impl Ended {
    /// How many ended in each way, where there were any.
    pub(crate) fn counts(ends: &Ends) -> Vec<(How, u64)> {
        let count = |how| Some((how, ends.get(&Self { how })?.get()));
        How::ALL.into_iter().filter_map(count).collect()
    }
}

pub(crate) type Ends = Family<Ended, Counter>;

/// How a machine ended, where there was one and its end was not orderly.
pub(crate) fn how(state: &State) -> Option<How> {
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
