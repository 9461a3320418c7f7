//! Descriptor chains, checked: the only way devices here turn a guest's descriptors into host memory.
//!
//! `virtio_queue::DescriptorChain` ends a chain silently where it cannot follow it (a loop, a bad index, an unreadable
//! table) and follows indirect tables whether or not they were negotiated. Here each of those is an error, and a
//! [`Chain`] that was returned is whole: every byte of it lies in guest memory, device-readable before device-writable
//! (virtio 1.2, 2.7.4.2), at most queue-size descriptors and 4 GiB in all. The table is read once; what the guest
//! changes afterwards has no effect. Guest memory itself is only ever reached through volatile slices.

use super::device::DeviceError;
use crate::memory::GuestMemory;
use std::collections::VecDeque;
use virtio_queue::{Queue, QueueOwnedT, QueueT, desc::split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

/// Why a chain cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// `virtio_queue` refused the available ring: not ready, or avail.idx is more than a queue size ahead.
    #[error("the available ring cannot be followed: {0}")]
    Ring(virtio_queue::Error),
    /// An index at or beyond the queue size.
    #[error("descriptor index {index} in a queue of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Queue size.
        size: u16,
    },
    /// More descriptors than the queue has.
    #[error("the chain from descriptor {head} loops")]
    Loop {
        /// Where it began.
        head: u16,
    },
    /// VIRTQ_DESC_F_INDIRECT without VIRTIO_RING_F_INDIRECT_DESC.
    #[error("descriptor {index} is indirect, which was not offered")]
    Indirect {
        /// The descriptor.
        index: u16,
    },
    /// A buffer of no bytes.
    #[error("descriptor {index} has no length")]
    Empty {
        /// The descriptor.
        index: u16,
    },
    /// A device-readable descriptor after a device-writable one.
    #[error("descriptor {index} is device-readable after a device-writable one")]
    Order {
        /// The descriptor.
        index: u16,
    },
    /// More than 2^32 - 1 bytes.
    #[error("the chain from descriptor {head} is longer than 4 GiB")]
    Length {
        /// Where it began.
        head: u16,
    },
    /// The descriptor table or a buffer is not in guest memory.
    #[error("{length} bytes at guest address {address:#x} are not memory")]
    Address {
        /// Guest-physical address.
        address: u64,
        /// Length.
        length: u32,
    },
}

impl ChainError {
    /// As the error of queue `queue`.
    #[must_use]
    pub fn on(self, queue: usize) -> DeviceError {
        DeviceError::Queue { queue, what: self.to_string() }
    }
}

/// One descriptor chain.
#[derive(Debug)]
pub struct Chain<'m> {
    /// Descriptor it begins with; what `Queue::add_used` wants to know.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers<'m>,
    /// Where the device may write.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Takes the next available chain off `queue`; `None` when the driver has put no further one there.
    ///
    /// # Errors
    /// When the ring or the chain breaks a rule. The queue cannot be used any more then: the device has to stop.
    pub fn pop(queue: &mut Queue, memory: &'m GuestMemory) -> Result<Option<Self>, ChainError> {
        let Some(head) =
            queue.iter(memory).map_err(ChainError::Ring)?.next().map(|descriptors| descriptors.head_index())
        else {
            return Ok(None);
        };
        Self::follow(queue, memory, head).map(Some)
    }

    fn follow(queue: &Queue, memory: &'m GuestMemory, head: u16) -> Result<Self, ChainError> {
        let size = queue.size();
        let mut chain = Self { head, readable: Buffers::default(), writable: Buffers::default() };
        let mut index = head;
        for _ in 0..size {
            if index >= size {
                return Err(ChainError::Index { index, size });
            }
            let descriptor = read_descriptor(queue.desc_table(), memory, index)?;
            if descriptor.refers_to_indirect_table() {
                return Err(ChainError::Indirect { index });
            }
            if descriptor.len() == 0 {
                return Err(ChainError::Empty { index });
            }
            let buffers = if descriptor.is_write_only() {
                &mut chain.writable
            } else if chain.writable.is_empty() {
                &mut chain.readable
            } else {
                return Err(ChainError::Order { index });
            };
            buffers.push(memory, descriptor.addr(), descriptor.len())?;
            if chain.readable.len() + chain.writable.len() > u64::from(u32::MAX) {
                return Err(ChainError::Length { head });
            }
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(ChainError::Loop { head })
    }
}

fn read_descriptor(table: u64, memory: &GuestMemory, index: u16) -> Result<Descriptor, ChainError> {
    const SIZE: u32 = 16;
    let offset = u64::from(index) * u64::from(SIZE);
    let refused = |address| ChainError::Address { address, length: SIZE };
    let address = table.checked_add(offset).ok_or_else(|| refused(table))?;
    memory.read_obj(GuestAddress(address)).map_err(|_| refused(address))
}

/// A sequence of pieces of guest memory, used up from its front.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    slices: VecDeque<VolatileSlice<'m>>,
    length: u64,
}

impl<'m> Buffers<'m> {
    /// Adds `length` bytes of guest memory at `address`.
    pub(super) fn push(
        &mut self,
        memory: &'m GuestMemory,
        address: GuestAddress,
        length: u32,
    ) -> Result<(), ChainError> {
        let refused = |_| ChainError::Address { address: address.0, length };
        // A buffer may cross from one memory region into the next; it may not leave memory.
        for slice in memory.get_slices(address, length as usize) {
            self.slices.push_back(slice.map_err(refused)?);
        }
        self.length += u64::from(length);
        Ok(())
    }

    /// Adds the bytes of `other` at the end.
    pub(super) fn append(&mut self, mut other: Self) {
        self.slices.append(&mut other.slices);
        self.length += other.length;
    }

    /// Bytes left.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// True when no byte is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The pieces that are left, from front to back. None of them is empty.
    pub fn slices(&self) -> impl Iterator<Item = &VolatileSlice<'m>> {
        self.slices.iter()
    }

    /// Uses up `count` bytes, or all when there are fewer.
    pub fn advance(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            let Some(slice) = self.slices.pop_front() else { return };
            let taken = left.min(slice.len() as u64);
            self.length -= taken;
            left -= taken;
            // `taken` is at most the slice's own length, so it fits a usize and `offset` succeeds.
            if let Some(rest) = usize::try_from(taken).ok().and_then(|taken| slice.offset(taken).ok())
                && !rest.is_empty()
            {
                self.slices.push_front(rest);
            }
        }
    }

    /// Takes the last byte off, for a status; `None` when there is none.
    pub fn split_last(&mut self) -> Option<VolatileSlice<'m>> {
        let slice = self.slices.pop_back()?;
        let (rest, last) = slice.split_at(slice.len().checked_sub(1)?).ok()?;
        if !rest.is_empty() {
            self.slices.push_back(rest);
        }
        self.length -= 1;
        Some(last)
    }

    /// Copies from the front into `into` and uses those bytes up. Returns how many there were.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if done == into.len() {
                break;
            }
            done += slice.copy_to(&mut into[done..]);
        }
        self.advance(done as u64);
        done
    }

    /// Copies `from` to the front and uses those bytes up. Returns how many fitted.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if done == from.len() {
                break;
            }
            let count = slice.len().min(from.len() - done);
            slice.copy_from(&from[done..done + count]);
            done += count;
        }
        self.advance(done as u64);
        done
    }

    /// Fills `count` bytes at the front, or all when there are fewer, with zeros, and uses them up.
    pub fn write_zeros(&mut self, count: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = count;
        while left > 0 && !self.is_empty() {
            let piece = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            left -= self.write(&ZEROS[..piece]) as u64;
        }
    }
}
