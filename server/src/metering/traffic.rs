//! What passed the networks of sandboxes. The processes of a network count from their start on, and may be replaced: here the
//! counts only grow.

use sandboxvm_manager::TrafficCounters;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

/// Counts that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Passed {
    /// Connections that were allowed.
    pub(crate) connections: u64,
    /// Connections and questions that were refused.
    pub(crate) refused: u64,
    /// DNS questions that were answered.
    pub(crate) queries: u64,
    /// Bytes that guests sent.
    pub(crate) sent: u64,
    /// Bytes that they received.
    pub(crate) received: u64,
}

impl Passed {
    fn each(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            connections: with(self.connections, other.connections),
            refused: with(self.refused, other.refused),
            queries: with(self.queries, other.queries),
            sent: with(self.sent, other.sent),
            received: with(self.received, other.received),
        }
    }
}

impl From<TrafficCounters> for Passed {
    fn from(counters: TrafficCounters) -> Self {
        let TrafficCounters { flows, refused, open: _, queries, bytes_out, bytes_in } = counters;
        Self { connections: flows, refused, queries, sent: bytes_out, received: bytes_in }
    }
}

/// The counts of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// As its processes counted last.
    seen: Passed,
    sum: Passed,
}

impl Traffic {
    /// Takes what the processes of the network have counted. Returns what passed since the last time.
    pub(crate) fn take(&self, counters: TrafficCounters) -> Passed {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Passed::from(counters);
        // Less than before: other processes, which began at 0.
        let more = now.each(state.seen, |now, seen| if now >= seen { now - seen } else { now });
        state.seen = now;
        state.sum = state.sum.each(more, u64::saturating_add);
        more
    }

    /// Returns all that passed.
    pub(crate) fn sum(&self) -> Passed {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).sum
    }
}

/// The counts of all sandboxes together, also of those that are gone.
#[derive(Debug, Default)]
pub(crate) struct AllTraffic(Mutex<Passed>);

impl AllTraffic {
    pub(crate) fn add(&self, more: Passed) {
        let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *sum = sum.each(more, u64::saturating_add);
    }

    pub(crate) fn sum(&self) -> Passed {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_grow_also_when_processes_are_replaced() {
        let (all, traffic) = (AllTraffic::default(), Traffic::default());
        let count = |flows, bytes_in| TrafficCounters { flows, bytes_in, ..TrafficCounters::default() };
        for (counters, sum) in [
            (count(2, 100), (2, 100)),
            (count(2, 100), (2, 100)),
            (count(3, 150), (3, 150)),
            // Replaced by others, which count from 0.
            (count(1, 10), (4, 160)),
            (count(1, 30), (4, 180)),
            (count(u64::MAX, 30), (u64::MAX, 180)),
        ] {
            all.add(traffic.take(counters));
            let passed = traffic.sum();
            assert_eq!(((passed.connections, passed.received), all.sum()), (sum, passed));
        }
    }
}
