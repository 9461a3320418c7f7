//! Who may begin something in a sandbox: requests pass while it runs, and wait while it changes between running, paused
//! and gone. A change waits for requests that have passed and not yet begun, but not for long: they are its clients'.

use std::time::Duration;
use tokio::{sync::watch, time::timeout};

#[derive(Debug)]
pub(super) struct Gate {
    state: watch::Sender<State>,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    is_closed: bool,
    /// Passes that are held.
    inside: usize,
}

/// Held by a request until what it asked for has begun.
#[derive(Debug)]
pub(crate) struct Pass {
    state: watch::Sender<State>,
}

/// Held by a change; no request passes meanwhile.
#[derive(Debug)]
pub(super) struct Closed<'g> {
    gate: &'g Gate,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::default()) }
    }
}

impl Gate {
    /// Waits until no change is under way. Cancel safe.
    pub(super) async fn pass(&self) -> Pass {
        let mut seen = self.state.subscribe();
        loop {
            let passes = |state: &mut State| {
                state.inside += usize::from(!state.is_closed);
                !state.is_closed
            };
            if self.state.send_if_modified(passes) {
                return Pass { state: self.state.clone() };
            }
            // The sender is this gate's own, so it is there.
            let _ = seen.wait_for(|state| !state.is_closed).await;
        }
    }

    /// Closes it, for a change that has excluded all other changes.
    pub(super) fn close(&self) -> Closed<'_> {
        self.state.send_modify(|state| state.is_closed = true);
        Closed { gate: self }
    }
}

impl Closed<'_> {
    /// Waits for the requests that passed before to have begun, for as long as `within`.
    pub(super) async fn begun(&self, within: Duration) {
        let mut seen = self.gate.state.subscribe();
        let _ = timeout(within, seen.wait_for(|state| state.inside == 0)).await;
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.gate.state.send_modify(|state| state.is_closed = false);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.inside -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_a_change_and_a_change_for_those_that_passed() {
        let gate = Gate::default();
        let first = gate.pass().await;
        let closed = gate.close();
        assert!(gate.pass().now_or_never().is_none(), "a change is under way");
        let long = Duration::from_secs(3600);
        assert!(closed.begun(long).now_or_never().is_none(), "one has passed and not begun");
        drop(first);
        closed.begun(long).now_or_never().unwrap();
        let waiting = gate.pass();
        tokio::pin!(waiting);
        assert!((&mut waiting).now_or_never().is_none());
        drop(closed);
        let second = waiting.await;
        // One that never begins keeps a change for a moment only.
        gate.close().begun(Duration::from_secs(5)).await;
        drop(second);
    }
}
