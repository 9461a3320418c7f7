//! One virtqueue during one call: takes chains, returns them, and keeps notifications in both directions few.

use super::{chain::Chain, device::DeviceError};
use crate::memory::GuestMemory;
use std::{
    num::Wrapping,
    sync::atomic::{Ordering, fence},
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;
/// Size of the available ring's `flags` and `idx`, and of one of its elements, in bytes (virtio 1.2, 2.7.6).
const AVAILABLE_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
/// Size of the used ring's `flags` and `idx`, and of one of its elements, in bytes (virtio 1.2, 2.7.8).
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// Which way all buffers of a chain must point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Device-readable.
    FromGuest,
    /// Device-writable.
    ToGuest,
}

/// A queue and the memory it lives in.
#[derive(Debug)]
pub(super) struct Ring<'a> {
    index: usize,
    queue: &'a mut Queue,
    memory: &'a GuestMemory,
    /// Chains that were returned since this was made.
    returned: Wrapping<u16>,
}

impl<'a> Ring<'a> {
    /// Queue `index`, which the transport has checked to be there.
    pub(super) fn new(queues: &'a mut [Queue], memory: &'a GuestMemory, index: usize) -> Self {
        Self { index, queue: &mut queues[index], memory, returned: Wrapping(0) }
    }

    fn malformed(&self, what: impl ToString) -> DeviceError {
        DeviceError::Queue { queue: self.index, what: what.to_string() }
    }

    /// A chain of this queue is of no use.
    pub(super) fn bad_buffer(&self, what: &str) -> DeviceError {
        self.malformed(what)
    }

    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    pub(super) fn ready(&self) -> bool {
        self.queue.ready()
    }

    /// `avail.idx`: how many chains the driver has made available so far, modulo 2^16.
    pub(super) fn available_index(&self) -> Result<Wrapping<u16>, DeviceError> {
        self.queue.avail_idx(self.memory, Ordering::Acquire).map_err(|error| self.malformed(error))
    }

    /// Takes the next available chain, all of which must point in `direction`.
    pub(super) fn pop(&mut self, direction: Direction) -> Result<Option<Chain<'a>>, DeviceError> {
        if !self.queue.ready() || self.available_index()?.0 == self.queue.next_avail() {
            return Ok(None);
        }
        let chain = Chain::pop(self.queue, self.memory).map_err(|error| error.on(self.index))?;
        // Without this a ring that says it has a chain but cannot be read would be asked again and again.
        let chain = chain.ok_or_else(|| self.malformed("the available ring cannot be read"))?;
        let wrong = match direction {
            Direction::FromGuest => &chain.writable,
            Direction::ToGuest => &chain.readable,
        };
        if wrong.is_empty() { Ok(Some(chain)) } else { Err(self.malformed("a buffer points the wrong way")) }
    }

    /// Puts the chain just taken back.
    pub(super) fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a chain into which `written` bytes were put.
    pub(super) fn push_used(&mut self, head: u16, written: u32) -> Result<(), DeviceError> {
        self.returned += 1;
        self.queue.add_used(self.memory, head, written).map_err(|error| self.malformed(error))
    }

    /// Returns chains, each with the number of bytes that were put into it, in a way that the driver sees all of them or
    /// none.
    pub(super) fn push_used_together(&mut self, chains: &[(u16, u32)]) -> Result<(), DeviceError> {
        let Some((&(last_head, last_written), others)) = chains.split_last() else { return Ok(()) };
        let mut position = Wrapping(self.queue.next_used());
        for &(head, written) in others {
            if head >= self.size() {
                return Err(self.malformed(format!("descriptor index {head} in a queue of {}", self.size())));
            }
            // Two little-endian words: the head, and the number of bytes.
            let element = (u64::from(written) << 32 | u64::from(head)).to_le_bytes();
            let at = self.used_at(USED_HEADER + USED_ELEMENT * u64::from(position.0 % self.size()))?;
            self.memory.write_slice(&element, at).map_err(|error| self.malformed(error))?;
            position += 1;
            self.returned += 1;
        }
        self.queue.set_next_used(position.0);
        // Writes the index, which shows the driver all of them.
        self.push_used(last_head, last_written)
    }

    /// Returns the address at `offset` in the used ring.
    fn used_at(&self, offset: u64) -> Result<GuestAddress, DeviceError> {
        GuestAddress(self.queue.used_ring())
            .checked_add(offset)
            .ok_or_else(|| self.malformed("the used ring wraps around the end of memory"))
    }

    /// Whether the driver wants an interrupt for what was returned since this was last asked; to be asked only after
    /// something was.
    pub(super) fn interrupt_due(&mut self) -> Result<bool, DeviceError> {
        // The used ring must be seen before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        let returned = std::mem::take(&mut self.returned);
        if !self.queue.event_idx_enabled() {
            return Ok(self.available(0)? & NO_INTERRUPT == 0);
        }
        // used_event, behind the elements: the driver wants to know when the index moves beyond it (virtio 1.2, 2.7.7).
        let offset = AVAILABLE_HEADER + AVAILABLE_ELEMENT * u64::from(self.size());
        let used_event = Wrapping(self.available(offset)?);
        Ok(Wrapping(self.queue.next_used()) - used_event - Wrapping(1) < returned)
    }

    /// Returns the number at `offset` in the available ring.
    fn available(&self, offset: u64) -> Result<u16, DeviceError> {
        let at = GuestAddress(self.queue.avail_ring()).checked_add(offset);
        let at = at.ok_or_else(|| self.malformed("the available ring wraps around the end of memory"))?;
        self.memory.load(at, Ordering::Acquire).map(u16::from_le).map_err(|error| self.malformed(error))
    }

    /// Asks the driver to be quiet about new chains. With VIRTIO_RING_F_EVENT_IDX it is anyway after one notification.
    pub(super) fn suppress_notifications(&mut self) -> Result<(), DeviceError> {
        self.queue.disable_notification(self.memory).map_err(|error| self.malformed(error))
    }

    /// Asks for a notification of the next chain; true when one came before that took effect.
    pub(super) fn enable_notifications(&mut self) -> Result<bool, DeviceError> {
        self.queue.enable_notification(self.memory).map_err(|error| self.malformed(error))
    }

    /// Asks for a notification when `avail.idx` moves beyond `index`, which may lie ahead of what was taken.
    pub(super) fn notify_beyond(&mut self, index: Wrapping<u16>) -> Result<(), DeviceError> {
        if !self.queue.event_idx_enabled() {
            return self.enable_notifications().map(drop);
        }
        // avail_event, behind the used ring's elements (virtio 1.2, 2.7.10).
        let offset = USED_HEADER + USED_ELEMENT * u64::from(self.queue.size());
        let at = self.used_at(offset)?;
        self.memory.store(index.0.to_le(), at, Ordering::SeqCst).map_err(|error| self.malformed(error))
    }
}
