//! Finds a guest that can never run again: every vCPU is halted with interrupts disabled. KVM halts vCPUs in the kernel
//! and reports nothing, so the event loop looks once a second while the machine runs.
//!
//! A look reads KVM's counters and disturbs no vCPU. Only when no vCPU entered the guest between two looks are the vCPUs
//! stopped and their state read, and once for each such time: an idle guest with interrupts enabled is stopped once and
//! then not until it ran again.

use super::EventLoop;
use crate::{machine::Machine, stats::Counters};
use rustix::time::Timespec;
use sandboxvm_protocol::vmm::ExitReason;
use std::time::{Duration, Instant};

/// Time between two looks. A guest that stands still is ended after one to two of these.
const INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    /// When to look next; `None` while the machine does not run.
    next: Option<Instant>,
    /// The counters at the last look.
    seen: Vec<Counters>,
    /// The counters at which the vCPUs were stopped and found able to run.
    cleared: Vec<Counters>,
}

impl Standstill {
    /// How long the event loop may wait for something else; `None` for as long as it takes.
    fn patience(&mut self, runs: bool) -> Option<Duration> {
        if !runs {
            *self = Self::default();
            return None;
        }
        let now = Instant::now();
        Some(self.next.get_or_insert(now + INTERVAL).saturating_duration_since(now))
    }

    /// True when it is time to look.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.next = Some(now + INTERVAL);
        }
        due
    }

    /// Takes the counters of this look; true when nothing ran since the last one and this was not looked into yet.
    fn is_suspicious(&mut self, counters: Vec<Counters>) -> bool {
        let stands = counters == self.seen && counters != self.cleared;
        self.seen = counters;
        stands
    }

    /// The vCPUs were found able to run.
    fn clear(&mut self) {
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

impl EventLoop {
    /// How long to wait for events before [`EventLoop::look_for_standstill`] is called again.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        let shared = self.parts.machine.shared();
        self.standstill.patience(shared.has_run() && !shared.gate.is_paused())
    }

    /// Ends the machine when its guest can never run again. Does nothing before it is time.
    pub(super) fn look_for_standstill(&mut self) {
        let machine = &self.parts.machine;
        if !self.standstill.is_due() || machine.shared().gate.is_paused() {
            return;
        }
        if !self.standstill.is_suspicious(machine.shared().counters()) {
            return;
        }
        match stands_still(machine) {
            Ok(false) => self.standstill.clear(),
            Ok(true) => machine.shared().end(ExitReason::VcpusHalted),
            Err(error) => machine.shared().end(ExitReason::HostFailure { message: error.to_string() }),
        }
    }
}

/// Stops the vCPUs for a moment and reads their state.
fn stands_still(machine: &Machine) -> Result<bool, crate::machine::MachineError> {
    machine.pause();
    let result = machine.can_never_run();
    machine.resume();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(exits: u64) -> Vec<Counters> {
        vec![Counters { exits, ..Counters::default() }]
    }

    #[test]
    fn a_machine_is_looked_into_once_for_each_time_that_it_stands() {
        let mut standstill = Standstill::default();
        assert!(!standstill.is_suspicious(ran(5)));
        assert!(standstill.is_suspicious(ran(5)));
        // Not answered yet: it stays so.
        assert!(standstill.is_suspicious(ran(5)));
        standstill.clear();
        assert!(!standstill.is_suspicious(ran(5)));
        assert!(!standstill.is_suspicious(ran(6)));
        assert!(standstill.is_suspicious(ran(6)));
    }

    #[test]
    fn a_machine_that_does_not_run_is_not_waited_for() {
        let mut standstill = Standstill::default();
        assert_eq!(standstill.patience(false), None);
        assert!(standstill.patience(true).is_some_and(|patience| patience <= INTERVAL));
        assert!(!standstill.is_due());
        assert_eq!(standstill.patience(false), None);
        assert_eq!(standstill.next, None);
    }
}
