//! Bytes between a socket of the host and the guest's buffers, with no copy of ours between.
//!
//! The only place with `unsafe` of the devices that have sockets. The guest may change its buffers at any time, also while a call is
//! under way; nothing here ever makes a Rust reference to them.

use super::chain::Buffers;
use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};
use vm_memory::{VolatileSlice, bitmap::Bitmap as _};

/// Most pieces handed to the kernel in one call: its UIO_MAXIOV. A queue here has fewer descriptors, but a buffer may
/// lie across two memory regions.
pub(super) const MAX_PIECES: usize = 1024;

/// A part of a chain's buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'b, 'm> {
    buffers: &'b Buffers<'m>,
    start: usize,
    length: usize,
}

impl<'b, 'm> Part<'b, 'm> {
    /// The bytes of `buffers` from `start` on, as far as there are any.
    pub(super) fn from(buffers: &'b Buffers<'m>, start: usize) -> Self {
        // A chain is at most 4 GiB and a usize has 64 bits on every host with KVM that we build for.
        let length = usize::try_from(buffers.len()).unwrap_or(usize::MAX).saturating_sub(start);
        Self { buffers, start, length }
    }

    /// The first `limit` bytes of it.
    pub(super) fn first(self, limit: usize) -> Self {
        Self { length: self.length.min(limit), ..self }
    }

    /// What is left after the first `count` bytes.
    pub(super) fn after(self, count: usize) -> Self {
        let count = count.min(self.length);
        Self { start: self.start + count, length: self.length - count, ..self }
    }

    pub(super) fn len(self) -> usize {
        self.length
    }

    /// Where it lies in guest memory.
    fn pieces(self) -> impl Iterator<Item = VolatileSlice<'m>> {
        let (mut skip, mut left) = (self.start, self.length);
        self.buffers.slices().filter_map(move |slice| {
            let begin = skip.min(slice.len());
            let take = left.min(slice.len() - begin);
            skip -= begin;
            left -= take;
            // Inside the slice by the lines above, so it does not fail.
            if take == 0 { None } else { slice.subslice(begin, take).ok() }
        })
    }

    /// Appends a copy to `into`.
    pub(super) fn append_to(self, into: &mut Vec<u8>) {
        let mut at = into.len();
        into.resize(at + self.length, 0);
        for piece in self.pieces() {
            at += piece.copy_to(&mut into[at..]);
        }
    }

    /// Sends it without blocking or raising SIGPIPE; returns how many bytes the socket took.
    pub(super) fn send_to(self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.send_after(&[], socket)
    }

    /// Sends `start`, and then this, in one message. As [`Part::send_to`].
    pub(super) fn send_after(self, start: &[u8], socket: BorrowedFd<'_>) -> io::Result<usize> {
        // sendmsg only reads through the pointers; `iovec` has no constant form.
        let first = libc::iovec { iov_base: start.as_ptr().cast_mut().cast(), iov_len: start.len() };
        let mut pieces: Vec<libc::iovec> = std::iter::once(first)
            .filter(|first| first.iov_len > 0)
            .chain(self.pieces().map(|piece| libc::iovec {
                iov_base: piece.ptr_guard().as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            }))
            .take(MAX_PIECES)
            .collect();
        let message = message(&mut pieces);
        // SAFETY: `message` and the iovec array it points to live until the call returns. Each entry is `start`, which is
        // borrowed until then, or the address and length of a VolatileSlice that borrows the guest memory mapping for 'm, so it is mapped for the whole call (a
        // pointer guard maps nothing by itself without Xen). The guest may write these bytes meanwhile: the kernel copies
        // them, and no Rust code reads them.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives into it, which is not empty, without blocking; zero is the end of the stream.
    pub(super) fn receive_from(self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.receive_after(&mut [], socket)
    }

    /// Receives into `start`, and then into this, which are not both empty. Returns how many bytes came, those in `start`
    /// included. As [`Part::receive_from`].
    pub(super) fn receive_after(self, start: &mut [u8], socket: BorrowedFd<'_>) -> io::Result<usize> {
        let length = start.len();
        let first = libc::iovec { iov_base: start.as_mut_ptr().cast(), iov_len: length };
        let mut pieces: Vec<libc::iovec> = std::iter::once(first)
            .filter(|first| first.iov_len > 0)
            .chain(
                self.pieces()
                    .map(|piece| libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: piece.len() }),
            )
            .take(MAX_PIECES)
            .collect();
        let mut message = message(&mut pieces);
        // SAFETY: as for `send_after`; the kernel writes only inside `start`, which is borrowed mutably until the call
        // returns, and inside the given pieces of guest memory, which no Rust reference covers. No control buffer is given, so descriptors a client passes along are closed by the kernel.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for piece in self.first(received.saturating_sub(length)).pieces() {
            piece.bitmap().mark_dirty(0, piece.len());
        }
        Ok(received)
    }
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeroes is a valid value: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    // The field is `usize` with glibc and `i32` with musl; the count is at most MAX_PIECES.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    {
        message.msg_iovlen = pieces.len() as _;
    }
    message
}
