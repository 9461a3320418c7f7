//! Bytes of the guest that a slow client has not taken yet.

use super::transfer::Part;

/// A queue of bytes that owns memory only while it holds any. What waits is bounded by the connection's
/// [`super::credit::ReceiveWindow`], which refuses what would not fit before it gets here; memory by a small multiple.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// Bytes at the front of `bytes` that are gone.
    taken: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What waits, oldest byte first.
    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Appends a copy of `part`.
    pub(super) fn append(&mut self, part: Part<'_, '_>) {
        // Without this a client that always leaves a little would let the gone bytes pile up; done at the half, so that
        // moving bytes costs no more than receiving them did.
        if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
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
        *self = Self::default();
        dropped
    }

    /// Memory held, in bytes.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.bytes.capacity()
    }
}
