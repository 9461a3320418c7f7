//! Timeouts, sorted, with one timer for the earliest.

use super::{
    packet::HostPort,
    poller::{HandshakeId, Poller},
};
use std::{
    collections::BTreeSet,
    io,
    time::{Duration, Instant},
};

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expiry {
    Handshake(HandshakeId),
    Connection(HostPort),
    /// Transmitted buffers go back to the driver.
    Completions,
    /// Clients are accepted again.
    Accept,
    /// Packets are taken from the guest again.
    Pace,
}

/// Pending deadlines. The one who sets a deadline keeps its `Instant` and clears it when it no longer matters.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    pending: BTreeSet<(Instant, Expiry)>,
    /// When the timer goes off; it is left running when its deadline is cleared, as most soon have a successor.
    armed: Option<Instant>,
}

impl Deadlines {
    /// Sets a deadline `delay` from now.
    pub(super) fn set(&mut self, poller: &Poller, delay: Duration, expiry: Expiry) -> io::Result<Instant> {
        let at = Instant::now() + delay;
        self.pending.insert((at, expiry));
        self.arm(poller)?;
        Ok(at)
    }

    pub(super) fn clear(&mut self, at: Instant, expiry: Expiry) {
        self.pending.remove(&(at, expiry));
    }

    /// Takes a deadline that has passed; the timer must have gone off.
    pub(super) fn next_expired(&mut self, now: Instant) -> Option<Expiry> {
        let (at, expiry) = *self.pending.first()?;
        if at > now {
            return None;
        }
        self.pending.pop_first();
        Some(expiry)
    }

    /// After the timer went off and all expired deadlines were taken.
    pub(super) fn rearm(&mut self, poller: &Poller) -> io::Result<()> {
        self.armed = None;
        self.arm(poller)
    }

    fn arm(&mut self, poller: &Poller) -> io::Result<()> {
        if let Some((at, _)) = self.pending.first()
            && self.armed.is_none_or(|armed| *at < armed)
        {
            poller.set_timer(at.saturating_duration_since(Instant::now()))?;
            self.armed = Some(*at);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }
}
