//! When to look whether a guest can ever run again: once a second while the machine runs, and closer when no vCPU entered
//! the guest between two looks. See [`super::halted`].

use crate::stats::Counters;
use rustix::time::Timespec;
use std::time::{Duration, Instant};

/// Time between two looks. A guest that stands still is ended after one to two of these.
const INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HaltWatch {
    /// When to look next; `None` while the machine does not run.
    next: Option<Instant>,
    /// The counters at the last look.
    seen: Vec<Counters>,
    /// The counters at which the vCPUs were stopped and found able to run.
    cleared: Vec<Counters>,
}

impl HaltWatch {
    /// How long the event loop may wait for something else; `None` for as long as it takes.
    pub(super) fn patience(&mut self, runs: bool) -> Option<Duration> {
        if !runs {
            *self = Self::default();
            return None;
        }
        let now = Instant::now();
        Some(self.next.get_or_insert(now + INTERVAL).saturating_duration_since(now))
    }

    /// True when it is time to look.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.next = Some(now + INTERVAL);
        }
        due
    }

    /// Takes the counters of this look; true when nothing ran since the last one and this was not looked into yet.
    pub(super) fn is_suspicious(&mut self, counters: Vec<Counters>) -> bool {
        let stands = counters == self.seen && counters != self.cleared;
        self.seen = counters;
        stands
    }

    /// The vCPUs were found able to run.
    pub(super) fn clear(&mut self) {
        self.cleared.clone_from(&self.seen);
    }
}

/// As epoll wants it.
pub(super) fn timespec(patience: Duration) -> Timespec {
    Timespec {
        // Never longer than INTERVAL.
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(exits: u64) -> Vec<Counters> {
        vec![Counters { exits, ..Counters::default() }]
    }

    #[test]
    fn idle_machine_is_examined_once_for_each_standstill() {
        let mut watch = HaltWatch::default();
        assert!(!watch.is_suspicious(ran(5)));
        assert!(watch.is_suspicious(ran(5)));
        // Not answered yet: it stays so.
        assert!(watch.is_suspicious(ran(5)));
        watch.clear();
        assert!(!watch.is_suspicious(ran(5)));
        assert!(!watch.is_suspicious(ran(6)));
        assert!(watch.is_suspicious(ran(6)));
    }

    #[test]
    fn event_loop_does_not_wait_for_a_machine_that_does_not_run() {
        let mut watch = HaltWatch::default();
        assert_eq!(watch.patience(false), None);
        assert!(watch.patience(true).is_some_and(|patience| patience <= INTERVAL));
        assert!(!watch.is_due());
        assert_eq!(watch.patience(false), None);
        assert_eq!(watch.next, None);
    }
}
