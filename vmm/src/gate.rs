//! The gate that vCPU threads pass before they enter the guest. The event loop closes it to pause the machine and
//! knows when every thread stands before it: no vCPU is then inside KVM_RUN, and its state may be read.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long to wait for vCPUs before they are kicked again. A kick is never lost (see `vcpu::Kick`); this only bounds
/// the damage should that ever be wrong.
const KICK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Closed,
    Open,
    /// As closed, until the event loop has examined why a vCPU came out while the gate was open.
    Doubted,
    Over,
}

#[derive(Debug)]
struct State {
    target: Target,
    /// Threads standing before the gate or gone for good.
    parked: usize,
}

/// See the module.
#[derive(Debug)]
pub struct RunGate {
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl RunGate {
    /// A closed gate for `threads` vCPU threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self { threads, state: Mutex::new(State { target: Target::Closed, parked: 0 }), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is two plain words that are valid in every combination, also after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by a vCPU thread, holding nothing: returns true when it may enter the guest, false when it must end.
    #[must_use]
    pub fn pass(&self) -> bool {
        let mut state = self.state();
        if state.target == Target::Open {
            return true;
        }
        state.parked += 1;
        self.changed.notify_all();
        while matches!(state.target, Target::Closed | Target::Doubted) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.target == Target::Open {
            state.parked -= 1;
            return true;
        }
        false
    }

    /// Called by a vCPU thread that ends by itself.
    pub fn leave(&self) {
        self.state().parked += 1;
        self.changed.notify_all();
    }

    /// Lets vCPUs run. No effect once [`RunGate::end`] was called.
    pub fn open(&self) {
        let mut state = self.state();
        if matches!(state.target, Target::Closed | Target::Doubted) {
            state.target = Target::Open;
            self.changed.notify_all();
        }
    }

    /// Holds all vCPUs; returns when none is in the guest any more. `kick` makes every vCPU leave KVM_RUN.
    pub fn close(&self, kick: impl Fn()) {
        self.stop(Target::Closed, kick);
    }

    /// Ends all vCPU threads; returns when none is in the guest any more.
    pub fn end(&self, kick: impl Fn()) {
        self.stop(Target::Over, kick);
    }

    fn stop(&self, target: Target, kick: impl Fn()) {
        let mut state = self.state();
        if state.target != Target::Over {
            state.target = target;
        }
        self.changed.notify_all();
        while state.parked < self.threads {
            kick();
            state = self.changed.wait_timeout(state, KICK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Called by a vCPU thread that came out of the guest although the gate is open: it holds all of them until the gate is
    /// opened again. False when the gate was not open.
    #[must_use]
    pub fn doubt(&self) -> bool {
        let mut state = self.state();
        let was_open = state.target == Target::Open;
        if was_open {
            state.target = Target::Doubted;
        }
        was_open
    }

    /// True from [`RunGate::doubt`] to the next open or close.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.state().target == Target::Doubted
    }

    /// True while the gate is closed.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.state().target == Target::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        thread,
    };

    #[test]
    fn doubt_holds_threads_until_the_gate_is_opened_and_is_no_pause() {
        let gate = Arc::new(RunGate::new(1));
        assert!(!gate.doubt(), "a closed gate is closed for a reason");
        gate.open();
        assert!(gate.doubt());
        assert!(gate.is_doubted() && !gate.is_paused());
        let thread = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.pass()
        });
        gate.close(|| {});
        assert!(gate.is_paused() && !gate.is_doubted());
        gate.open();
        assert!(thread.join().unwrap());
        gate.leave();
        gate.end(|| {});
    }

    #[test]
    fn nothing_runs_while_closed_and_all_end() {
        let gate = Arc::new(RunGate::new(3));
        let steps = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, steps) = (Arc::clone(&gate), Arc::clone(&steps));
                thread::spawn(move || {
                    while gate.pass() {
                        steps.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            gate.open();
            let before = steps.load(Ordering::SeqCst);
            while steps.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
            gate.close(|| {});
            let standing = steps.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
            assert_eq!(steps.load(Ordering::SeqCst), standing);
        }
        gate.end(|| {});
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
