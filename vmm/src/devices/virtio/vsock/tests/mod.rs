//! The device against a driver that keeps to the rules of virtio and of Linux's vsock, and against one that does not.
//! Rings are real ones in real guest memory, clients are real Unix sockets; only the guest's kernel is played.

mod abuse;
mod guest;
mod lifecycle;
mod peer;
mod random;
mod reset;
mod stream;

/// What a device holds, for tests that see to it that it stays bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Footprint {
    pub(super) connections: usize,
    pub(super) handshakes: usize,
    pub(super) deadlines: usize,
    /// Bytes waiting for clients.
    pub(super) waiting: usize,
    /// Memory allocated for them.
    pub(super) allocated: usize,
    pub(super) replies: usize,
    pub(super) runnable: usize,
}
