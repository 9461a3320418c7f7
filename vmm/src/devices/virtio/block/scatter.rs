//! Positioned I/O between a file and scattered guest memory, without a copy in between.

use crate::devices::virtio::chain::Buffers;
use std::{fs::File, io, os::fd::AsRawFd};
use vm_memory::VolatileSlice;

/// Pieces per system call; far below the kernel's own limit of 1024.
const VECTORS: usize = 64;

/// The two system calls, which differ in direction only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToMemory,
    ToFile,
}

/// Reads `length` bytes at `offset` of `file` into the front of `buffers`, and uses those up.
///
/// # Errors
/// When the file cannot be read or ends before.
pub(super) fn read_exact_at(file: &File, offset: u64, buffers: &mut Buffers<'_>, length: u64) -> io::Result<()> {
    transfer(Direction::ToMemory, file, offset, buffers, length)
}

/// Writes the first `length` bytes of `buffers` at `offset` of `file`, and uses those up.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write_all_at(file: &File, offset: u64, buffers: &mut Buffers<'_>, length: u64) -> io::Result<()> {
    transfer(Direction::ToFile, file, offset, buffers, length)
}

fn transfer(
    direction: Direction,
    file: &File,
    mut offset: u64,
    buffers: &mut Buffers<'_>,
    length: u64,
) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        match transfer_some(direction, file, offset, buffers, left) {
            Ok(0) if direction == Direction::ToMemory => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(done) => {
                buffers.advance(done);
                offset += done;
                left -= done;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One system call for up to `limit` bytes.
fn transfer_some(direction: Direction, file: &File, offset: u64, buffers: &Buffers<'_>, limit: u64) -> io::Result<u64> {
    let mut vectors = [const { libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 } }; VECTORS];
    let mut count = 0;
    let mut left = limit;
    for (vector, slice) in vectors.iter_mut().zip(buffers.slices()) {
        if left == 0 {
            break;
        }
        *vector = io_vector(slice, left);
        left -= vector.iov_len as u64;
        count += 1;
    }
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let done = match direction {
        // SAFETY: the first `count` (at most VECTORS) vectors each point to guest memory that stays mapped as long as
        // the slice borrowed by `buffers` lives. The guest may access that memory at the same time: the kernel copies
        // it as bytes, and no Rust reference to it exists.
        Direction::ToMemory => unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) },
        // SAFETY: as above; this direction only reads the memory.
        Direction::ToFile => unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset) },
    };
    u64::try_from(done).map_err(|_| io::Error::last_os_error())
}

fn io_vector(slice: &VolatileSlice<'_>, limit: u64) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: usize::try_from(limit).map_or(slice.len(), |limit| slice.len().min(limit)),
    }
}
