//! Bytes of the guest that a slow client has not taken yet.

use crate::devices::virtio::transfer::Part;

/// A queue of at most `limit` bytes, which takes no more memory than that, and none while it is empty.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// Bytes at the front of `bytes` that are gone.
    taken: usize,
    limit: usize,
}

impl Backlog {
    pub(super) fn new(limit: u32) -> Self {
        Self { bytes: Vec::new(), taken: 0, limit: limit as usize }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What waits, oldest byte first.
    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Appends a copy of `part`. That what waits stays within the limit is the caller's to see to, with
    /// [`super::credit::ReceiveWindow`].
    pub(super) fn append(&mut self, part: Part<'_, '_>) {
        if self.bytes.len() + part.len() > self.limit {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        let needed = self.bytes.len() + part.len();
        if needed > self.bytes.capacity() {
            let capacity = needed.max(self.bytes.capacity() * 2).min(self.limit.max(needed));
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        part.append_to(&mut self.bytes);
    }

    /// Drops `count` bytes, at most as many as wait, from the front.
    pub(super) fn take(&mut self, count: usize) {
        self.taken += count;
        if self.taken >= self.bytes.len() {
            self.clear();
        }
    }

    /// Drops everything and returns how much it was.
    pub(super) fn clear(&mut self) -> usize {
        let dropped = self.pending().len();
        (self.bytes, self.taken) = (Vec::new(), 0);
        dropped
    }

    /// Memory held, in bytes.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.bytes.capacity()
    }
}
