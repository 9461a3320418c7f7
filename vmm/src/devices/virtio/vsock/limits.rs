//! How much of everything one device may hold, and how long it waits.

use std::time::Duration;

/// Bounds of one device. Everything that grows with what guest or clients do is bounded by one of these.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Concurrent connections, half-open and closing ones included; a client above the limit is closed immediately.
    pub(super) connections: usize,
    /// Concurrent clients that have not finished their `CONNECT` line; more wait in the listener's backlog.
    pub(super) handshakes: usize,
    /// RST replies waiting for a receive buffer; more are dropped, as on a lossy wire.
    pub(super) replies: usize,
    /// From accepting a client to its complete line.
    pub(super) handshake_timeout: Duration,
    /// From the line to the answer of the guest's kernel. Generous: that may be interpreted, have a hundred processes to
    /// run first and a busy host under it, and its machine may be paused.
    pub(super) response_timeout: Duration,
    /// From our SHUTDOWN of both directions to the guest's RST; Linux gives its own side 8 seconds.
    pub(super) close_timeout: Duration,
    /// How long a guest may leave the last bytes of a client that is gone unread before they are given up. Long, because
    /// a paused machine reads nothing.
    pub(super) linger_timeout: Duration,
    /// Longest a transmitted buffer is kept before the driver gets it back; see [`super::completions`].
    pub(super) completion_delay: Duration,
    /// Pause after the process ran out of descriptors.
    pub(super) accept_pause: Duration,
}

impl Limits {
    pub(super) const DEFAULT: Self = Self {
        connections: 1023,
        handshakes: 64,
        replies: 256,
        handshake_timeout: Duration::from_secs(5),
        response_timeout: Duration::from_secs(120),
        close_timeout: Duration::from_secs(10),
        linger_timeout: Duration::from_secs(300),
        completion_delay: Duration::from_secs(1),
        accept_pause: Duration::from_millis(100),
    };

    /// Receive window of a new connection, in bytes, when there are `connections` others: all windows full at the same time, the
    /// worst a guest and its clients can do together, hold 76 MiB.
    pub(super) fn window(connections: usize) -> u32 {
        if connections < 64 { 256 * 1024 } else { 64 * 1024 }
    }
}

/// Events taken from the epoll set in one wake-up.
pub(super) const EVENTS_PER_WAKE: usize = 64;
/// Packets taken from the transmit queue, and buffers filled on the receive queue, in one wake-up. What is left waits
/// for the next turn of the event loop, so that no guest or client holds it up.
pub(super) const PACKETS_PER_WAKE: usize = 64;
/// Clients accepted in one wake-up.
pub(super) const ACCEPTS_PER_WAKE: usize = 16;
