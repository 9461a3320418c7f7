//! What the card carried and dropped. The device counts, and the event loop reads for requests.

use sandboxvm_protocol::vmm::{NetworkCounters, NetworkStats};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of both directions.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// From the guest.
    pub(super) sent: Direction,
    /// To the guest.
    pub(super) received: Direction,
}

/// Counters of one direction.
#[derive(Debug, Default)]
pub(super) struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    /// Counts a frame of so many bytes.
    pub(super) fn carried(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a frame that was not carried.
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> NetworkCounters {
        NetworkCounters {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

impl Counters {
    /// Returns their values.
    pub(super) fn read(&self) -> NetworkStats {
        NetworkStats { sent: self.sent.read(), received: self.received.read() }
    }
}
