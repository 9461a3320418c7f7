//! One virtqueue during one call: takes chains, returns them, and keeps notifications in both directions few.

use crate::{
    devices::virtio::{chain::Chain, device::DeviceError},
    memory::GuestMemory,
};
use std::{
    num::Wrapping,
    sync::atomic::{Ordering, fence},
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;
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
}

impl<'a> Ring<'a> {
    /// Queue `index`, which the transport has checked to be there.
    pub(super) fn new(queues: &'a mut [Queue], memory: &'a GuestMemory, index: usize) -> Self {
        Self { index, queue: &mut queues[index], memory }
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
        self.queue.add_used(self.memory, head, written).map_err(|error| self.malformed(error))
    }

    /// Whether the driver wants an interrupt for what was returned since this was last asked; to be asked only after
    /// something was.
    pub(super) fn interrupt_due(&mut self) -> Result<bool, DeviceError> {
        if !self.queue.event_idx_enabled() {
            // The used ring must be seen before the driver's wish is read, or both sides could wait for each other.
            fence(Ordering::SeqCst);
            let flags: u16 = self
                .memory
                .load(vm_memory::GuestAddress(self.queue.avail_ring()), Ordering::Acquire)
                .map_err(|error| self.malformed(error))?;
            if u16::from_le(flags) & NO_INTERRUPT != 0 {
                return Ok(false);
            }
        }
        self.queue.needs_notification(self.memory).map_err(|error| self.malformed(error))
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
        let at = vm_memory::GuestAddress(self.queue.used_ring())
            .checked_add(offset)
            .ok_or_else(|| self.malformed("the used ring wraps around the end of memory"))?;
        self.memory.store(index.0.to_le(), at, Ordering::SeqCst).map_err(|error| self.malformed(error))
    }
}
