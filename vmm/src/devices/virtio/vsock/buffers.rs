//! The guest memory of one descriptor chain, as scattered buffers that a socket reads and writes without a copy between.
//!
//! The only place of this device with `unsafe`. The guest may change these bytes at any time, also while a call is
//! under way; nothing here ever makes a Rust reference to them.

use super::packet::HEADER_SIZE;
use crate::devices::virtio::device::GuestMemory;
use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, GuestMemoryError, Permissions, VolatileSlice, bitmap::Bitmap as _};

/// Descriptors of one chain that are looked at; a sender's packet that needs more is refused, a longer receive buffer is
/// used up to here. Linux needs 2, and 19 for a MSG_ZEROCOPY send.
const MAX_DESCRIPTORS: usize = 64;

/// Which way a chain must point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the guest: device-readable descriptors only.
    FromGuest,
    /// To the guest: device-writable descriptors only.
    ToGuest,
}

/// Why a chain cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    #[error("a descriptor points the wrong way for this queue")]
    WrongDirection,
    #[error("the chain breaks off: a descriptor is missing or out of the table")]
    BrokenOff,
    #[error("a buffer at {address:#x} is outside guest memory: {source}")]
    OutsideMemory { address: u64, source: GuestMemoryError },
}

/// Scattered guest memory.
#[derive(Debug)]
pub(super) struct GuestBuffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
    descriptors: usize,
}

impl<'m> GuestBuffers<'m> {
    /// The memory behind `chain`.
    ///
    /// # Errors
    /// When the driver's chain is malformed.
    pub(super) fn of_chain(
        memory: &'m GuestMemory,
        mut chain: DescriptorChain<&'m GuestMemory>,
        direction: Direction,
    ) -> Result<Self, ChainError> {
        let mut buffers = Self { slices: Vec::with_capacity(2), len: 0, descriptors: 0 };
        let mut more = true;
        while more && buffers.descriptors < MAX_DESCRIPTORS {
            let descriptor = chain.next().ok_or(ChainError::BrokenOff)?;
            let access = match direction {
                Direction::FromGuest => Permissions::Read,
                Direction::ToGuest => Permissions::Write,
            };
            if descriptor.is_write_only() != (direction == Direction::ToGuest) {
                return Err(ChainError::WrongDirection);
            }
            let outside = |source| ChainError::OutsideMemory { address: descriptor.addr().0, source };
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize, access).map_err(outside)? {
                buffers.push(slice.map_err(outside)?);
            }
            buffers.descriptors += 1;
            more = descriptor.has_next();
        }
        Ok(buffers)
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            // A chain's length cannot overflow: virtio-queue ends a chain at 2^32 bytes.
            self.len += slice.len();
            self.slices.push(slice);
        }
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many descriptors the chain has, up to the most that are looked at.
    pub(super) fn descriptors(&self) -> usize {
        self.descriptors
    }

    /// The bytes from `start` on, at most `limit` of them.
    pub(super) fn range(&self, start: usize, limit: usize) -> Self {
        let mut part = Self { slices: Vec::with_capacity(self.slices.len()), len: 0, descriptors: self.descriptors };
        let (mut skip, mut left) = (start, limit);
        for slice in &self.slices {
            if left == 0 {
                break;
            }
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let take = left.min(slice.len() - skip);
            // Inside the slice by the two lines above, so this cannot fail.
            if let Ok(piece) = slice.subslice(skip, take) {
                part.push(piece);
            }
            skip = 0;
            left -= take;
        }
        part
    }

    /// Copies the first bytes out as a packet header, once: later changes by the guest are not seen.
    pub(super) fn read_header(&self) -> Option<[u8; HEADER_SIZE]> {
        let mut header = [0; HEADER_SIZE];
        let mut filled = 0;
        for slice in &self.slices {
            filled += slice.copy_to(&mut header[filled..]);
        }
        (filled == HEADER_SIZE).then_some(header)
    }

    /// Puts `bytes`, of which there are at most as many as fit, at the start.
    pub(super) fn write(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in &self.slices {
            let now = rest.len().min(slice.len());
            slice.copy_from(&rest[..now]);
            rest = &rest[now..];
        }
    }

    /// Appends a copy of the bytes from `skip` on to `into`.
    pub(super) fn append_to(&self, skip: usize, into: &mut Vec<u8>) {
        let rest = self.range(skip, usize::MAX);
        let mut at = into.len();
        into.resize(at + rest.len, 0);
        for slice in &rest.slices {
            at += slice.copy_to(&mut into[at..]);
        }
    }

    /// Sends from these buffers without blocking or raising SIGPIPE; returns how many bytes the socket took.
    pub(super) fn send_to(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut pieces: Vec<libc::iovec> = self
            .slices
            .iter()
            // sendmsg only reads through the pointer; `iovec` has no constant form.
            .map(|slice| libc::iovec { iov_base: slice.ptr_guard().as_ptr().cast_mut().cast(), iov_len: slice.len() })
            .collect();
        let message = message(&mut pieces);
        // SAFETY: `message` and the iovec array it points to live until the call returns. Each entry is the address and
        // length of a VolatileSlice that borrows the guest memory mapping for 'm, so it is mapped for the whole call
        // (without Xen mappings a pointer guard is only the address). That the guest may write these bytes meanwhile
        // is the kernel's to copy, not ours to read.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives into these buffers, which are not empty, without blocking; zero is the end of the stream.
    pub(super) fn receive_from(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut pieces: Vec<libc::iovec> = self
            .slices
            .iter()
            .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
            .collect();
        let mut message = message(&mut pieces);
        // SAFETY: as for `send_to`; the kernel writes only inside the given slices of guest memory, which no Rust
        // reference covers. No control buffer is given, so descriptors a client passes along are closed by the kernel.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        let mut left = received;
        for slice in &self.slices {
            let written = left.min(slice.len());
            slice.bitmap().mark_dirty(0, written);
            left -= written;
        }
        Ok(received)
    }
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeroes is a valid value: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    // The field is `usize` with glibc and `i32` with musl; there are at most 2 * MAX_DESCRIPTORS pieces.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    {
        message.msg_iovlen = pieces.len() as _;
    }
    message
}
