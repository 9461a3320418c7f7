//! Finds a guest that can never run again: every vCPU is halted with interrupts disabled. KVM halts vCPUs in the kernel
//! and reports nothing, so the event loop looks once a second while the machine runs.
//!
//! A look reads KVM's counters and disturbs no vCPU. Only when no vCPU entered the guest between two looks are the vCPUs
//! stopped and their state read, and once for each such time: an idle guest with interrupts enabled is stopped once and
//! then not until it ran again.

use super::state::EventLoop;
use sandboxvm_protocol::vmm::ExitReason;
use std::time::Duration;

impl EventLoop {
    /// How long to wait for events before [`EventLoop::look_for_halt`] is called again.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        let shared = self.setup.machine.shared();
        self.halt_watch.patience(shared.has_run() && !shared.gate.is_paused())
    }

    /// Ends the machine when its guest can never run again. Does nothing before it is time.
    pub(super) fn look_for_halt(&mut self) {
        let machine = &self.setup.machine;
        if !self.halt_watch.is_due() || machine.shared().gate.is_paused() {
            return;
        }
        if !self.halt_watch.is_suspicious(machine.shared().counters()) {
            return;
        }
        match machine.can_never_run() {
            Ok(false) => self.halt_watch.clear(),
            Ok(true) => machine.shared().end(ExitReason::VcpusHalted),
            Err(error) => machine.shared().end(ExitReason::HostFailure { message: error.to_string() }),
        }
    }
}
