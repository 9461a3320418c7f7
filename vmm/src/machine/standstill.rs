//! Stopping a machine and letting it run again, so that for its guest the time between the two did not exist: scheduler
//! and monotonic clocks continue where they stood, wall clock and boot time are set to the present, and a copy has other
//! random numbers, all before a vCPU executes anything. Also where the stop was not ours: a signal to this process, a
//! freezer, a host that slept. What guest and host say to each other is [`super::mailbox`]'s.

use super::{
    Machine,
    error::{MachineError, host},
    mailbox::{Mailbox, Moment},
};
use crate::{
    arch::x86_64::{layout, state},
    timeline,
};
use std::sync::PoisonError;

/// How long after a timer interrupt a busy vCPU is believed to have run, where its next one was not set: a tick, which is
/// 20 ms, and what may hold an interrupt back.
const TICK_SLACK_MS: u64 = 50;

/// What a vCPU that stands says of when it last ran, by its TSC.
#[derive(Debug, Clone, Copy)]
struct LastRun {
    /// It waits for an interrupt.
    halted: bool,
    /// When its timer is to fire; 0 for a timer that is not set.
    deadline: u64,
    /// Its last timer interrupt and what may have followed.
    alive_until: u64,
}

/// The earliest moment before which no vCPU of these stood still, as far as can be known: a busy one is interrupted when
/// its timer fires, and one that waits does not look at a clock until then. `None` when nothing can be said.
fn stopped_before(vcpus: &[LastRun]) -> Option<u64> {
    let busy = vcpus.iter().filter(|vcpu| !vcpu.halted).map(|vcpu| vcpu.deadline.max(vcpu.alive_until)).max();
    let idle = || vcpus.iter().map(|vcpu| vcpu.deadline).filter(|deadline| *deadline != 0).min();
    let last = busy.or_else(idle)?;
    vcpus.iter().map(|vcpu| vcpu.alive_until).max().map(|alive| last.max(alive))
}

impl Machine {
    /// Lets the vCPUs run.
    pub fn resume(&self) {
        if self.shared.gate.is_paused() {
            self.leave_out_standstill();
        }
        self.shared.gate.open();
    }

    /// Stops all vCPUs between two instructions; returns when they stand.
    pub fn pause(&self) {
        self.examine_interruption();
        let ran = !self.shared.gate.is_paused();
        self.shared.gate.close(|| self.kick());
        if ran && let Some(mailbox) = self.mailbox() {
            // Neither fails: the page is memory, and a vCPU that stands has a TSC. A guest whose clock jumps is better
            // off than one that ends.
            let _ = self.now().map(|now| mailbox.stopped(now));
        }
    }

    /// Where a vCPU left the guest unasked, finds out for how long none of them ran, takes that out of the guest's time
    /// and lets them run again.
    pub fn examine_interruption(&self) {
        if !self.shared.gate.is_doubted() {
            return;
        }
        self.shared.gate.close(|| self.kick());
        if let Some(mailbox) = self.mailbox()
            && let Ok(Some(stop)) = self.unseen_stop(&mailbox)
            && mailbox.stopped(stop).is_ok()
        {
            self.leave_out_standstill();
        }
        self.shared.gate.open();
    }

    /// When this process was stopped, if it stood for longer than it takes to notice.
    fn unseen_stop(&self, mailbox: &Mailbox<'_>) -> Result<Option<Moment>, MachineError> {
        let now = self.now()?;
        let mut khz = 0;
        let mut last_runs = Vec::with_capacity(self.vcpus.len());
        for (index, thread) in self.vcpus.iter().enumerate() {
            let vcpu = thread.vcpu().lock().unwrap_or_else(PoisonError::into_inner);
            khz = u64::from(state::tsc_khz(&vcpu)?).max(1);
            last_runs.push(LastRun {
                halted: state::is_halted(&vcpu)?,
                deadline: state::tsc_deadline(&vcpu)?,
                alive_until: mailbox.alive(index).unwrap_or(0).saturating_add(TICK_SLACK_MS * khz),
            });
        }
        let Some(stopped) = stopped_before(&last_runs).filter(|stopped| *stopped < now.tsc) else { return Ok(None) };
        let stood_ns = u128::from(now.tsc - stopped) * 1_000_000 / u128::from(khz);
        let stood_ns = u64::try_from(stood_ns).unwrap_or(u64::MAX);
        Ok(Some(Moment { tsc: stopped, wall: now.wall.saturating_sub(stood_ns) }))
    }

    /// Has the guest's kernel make its random numbers unlike those of the machine it is a copy of.
    pub(super) fn tell_of_copy(&self) -> Result<(), MachineError> {
        let Some(mailbox) = self.mailbox() else { return Ok(()) };
        mailbox.became_copy().map_err(host("cannot give the guest fresh random bytes"))
    }

    /// Whether the guest's kernel leaves out time in which the machine does not run; older ones do not.
    #[must_use]
    pub fn leaves_out_standstill(&self) -> bool {
        self.mailbox().is_some()
    }

    fn mailbox(&self) -> Option<Mailbox<'_>> {
        Mailbox::find(&self.context.memory, layout::MAILBOX)
    }

    fn now(&self) -> Result<Moment, MachineError> {
        let first = self.vcpus[0].vcpu().lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Moment { tsc: state::tsc(&first)?, wall: timeline::wall_clock() })
    }

    /// For the guest, the time since it stopped did not exist. Each vCPU gets an interrupt where wall clock and boot time
    /// have to be set, and takes it before it runs a process.
    fn leave_out_standstill(&self) {
        let Some(mailbox) = self.mailbox() else { return };
        // What fails here is what the guest named, which then has the clocks it asked for.
        let Ok(Some(vector)) = self.now().map(|now| mailbox.resumed(now).unwrap_or(None)) else { return };
        for vcpu in (0u32..).take(self.vcpus.len()) {
            // A vCPU that was not started yet takes no interrupts.
            let _ = self.vm.signal_msi(layout::message_to(vcpu, vector));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu(halted: bool, deadline: u64, alive_until: u64) -> LastRun {
        LastRun { halted, deadline, alive_until }
    }

    #[test]
    fn busy_vcpu_ran_until_its_next_timer_interrupt() {
        assert_eq!(stopped_before(&[vcpu(false, 120, 110)]), Some(120));
        // Taking one just now.
        assert_eq!(stopped_before(&[vcpu(false, 0, 110)]), Some(110));
        // Beside one that waits for much longer.
        assert_eq!(stopped_before(&[vcpu(true, 9_000, 80), vcpu(false, 120, 90)]), Some(120));
        assert_eq!(stopped_before(&[vcpu(false, 130, 80), vcpu(false, 120, 90)]), Some(130));
        // It cannot have stopped before another's interrupt.
        assert_eq!(stopped_before(&[vcpu(true, 0, 200), vcpu(false, 120, 90)]), Some(200));
    }

    #[test]
    fn idle_machine_waited_for_its_first_timer() {
        assert_eq!(stopped_before(&[vcpu(true, 9_000, 80), vcpu(true, 500, 90)]), Some(500));
        assert_eq!(stopped_before(&[vcpu(true, 0, 80), vcpu(true, 500, 90)]), Some(500));
        assert_eq!(stopped_before(&[vcpu(true, 0, 80)]), None);
    }
}
