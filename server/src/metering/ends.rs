//! Counts machines that ended by themselves in a way that neither guest nor client asked for. Operators watch it for attempts
//! to escape from a machine. Each machine is counted once.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
};
use sandboxvm_manager::{ExitReason, State};

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
    pub(crate) how: How,
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
