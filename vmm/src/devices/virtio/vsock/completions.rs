//! Transmitted buffers that the driver gets back a little later, many at a time.
//!
//! A driver has nothing to do with a returned transmit buffer but to free it, yet each interrupt for one costs its
//! kernel thousands of instructions. virtio lets a device keep buffers as long as it likes, so they go back when a
//! quarter of the queue's descriptors or [`MAX_HEADS`] or [`MAX_BYTES`] are held, so that a sender never waits for them,
//! and after [`super::limits::Limits::completion_delay`] at the latest, so that an idle guest gets its memory back.

use super::deadlines::Expiry;
use crate::devices::virtio::device::DeviceError;
use crate::devices::virtio::ring::Ring;
use std::time::Instant;

/// Most buffers held.
const MAX_HEADS: usize = 16;
/// Most payload held, in bytes of guest memory.
const MAX_BYTES: usize = 256 * 1024;

/// Buffers the driver is still to get back.
#[derive(Debug, Default)]
pub(super) struct Completions {
    heads: Vec<u16>,
    descriptors: usize,
    bytes: usize,
    /// When they go back at the latest.
    pub(super) deadline: Option<Instant>,
}

impl Completions {
    /// Takes over the heads that a saved device held.
    pub(super) fn holding(heads: Vec<u16>) -> Self {
        Self { heads, ..Self::default() }
    }

    /// Holds a transmitted buffer.
    pub(super) fn hold(&mut self, head: u16, descriptors: usize, bytes: usize) {
        self.heads.push(head);
        self.descriptors += descriptors;
        self.bytes += bytes;
    }

    pub(super) fn heads(&self) -> &[u16] {
        &self.heads
    }

    /// Whether they should go back now.
    pub(super) fn due(&self, ring: &Ring<'_>) -> bool {
        self.heads.len() >= MAX_HEADS
            || self.bytes >= MAX_BYTES
            || self.descriptors >= usize::from(ring.size()).div_ceil(4)
    }

    /// Returns them all; true when there were any.
    pub(super) fn release(&mut self, ring: &mut Ring<'_>) -> Result<bool, DeviceError> {
        let any = !self.heads.is_empty();
        for head in self.heads.drain(..) {
            ring.push_used(head, 0)?;
        }
        (self.descriptors, self.bytes) = (0, 0);
        Ok(any)
    }

    /// Gives them up: the driver took the whole queue back.
    pub(super) fn drop_all(&mut self) {
        self.heads.clear();
        (self.descriptors, self.bytes) = (0, 0);
    }

    /// The deadline to clear, and the name it was set under.
    pub(super) fn take_deadline(&mut self) -> Option<(Instant, Expiry)> {
        self.deadline.take().map(|at| (at, Expiry::Completions))
    }
}
