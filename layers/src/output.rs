//! The file that becomes the image, written from its beginning to its end in whole buffers. Owns the
//! position and the limit of its size; it knows no format.

use crate::limits::{self, Exceeded};
use rustix::{
    fs::{FallocateFlags, fallocate, ftruncate},
    io::{Errno, pwrite},
};
use std::{io, os::fd::OwnedFd};

/// Size of a block of the image in bytes.
pub(crate) const BLOCK: u64 = 4096;
/// Size of the buffer in bytes: what is written at a time.
const BUFFER: usize = 1 << 20;

/// Why the image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The system refuses it.
    #[error("cannot write the image: {0}")]
    Io(#[from] io::Error),
    /// The image would be larger than its limit.
    #[error(transparent)]
    TooLarge(#[from] Exceeded),
}

impl From<Errno> for OutputError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The file.
#[derive(Debug)]
pub(crate) struct Output {
    file: OwnedFd,
    buffer: Box<[u8]>,
    filled: usize,
    /// Offset of the buffer in the file.
    offset: u64,
    limit: u64,
}

impl Output {
    /// Writes to an empty file, of at most `limit` bytes.
    pub(crate) fn new(file: OwnedFd, limit: u64) -> Self {
        // Blocks have 32-bit numbers.
        let limit = limit.min(u64::from(u32::MAX) * BLOCK);
        Self { file, buffer: vec![0; BUFFER].into(), filled: 0, offset: 0, limit }
    }

    /// Returns the number of bytes so far.
    pub(crate) fn position(&self) -> u64 {
        self.offset + self.filled as u64
    }

    /// Returns the number of blocks so far, the last one included if it is not full.
    pub(crate) fn blocks(&self) -> u32 {
        u32::try_from(self.position().div_ceil(BLOCK)).unwrap_or(u32::MAX)
    }

    /// Checks that this many further bytes fit the limit.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), Exceeded> {
        limits::check("size of the image in bytes", self.position().saturating_add(bytes), self.limit)
    }

    /// Returns space for further bytes, at least one. Call [`Self::advance`] when they are there.
    pub(crate) fn space(&mut self) -> Result<&mut [u8], OutputError> {
        if self.filled == BUFFER {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    /// Adds the first `count` bytes of the space.
    pub(crate) fn advance(&mut self, count: usize) -> Result<(), OutputError> {
        self.reserve(count as u64)?;
        self.filled += count;
        Ok(())
    }

    /// Adds bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), OutputError> {
        while !bytes.is_empty() {
            let space = self.space()?;
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.advance(count)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Adds zeros: a hole in the file, if they are many.
    pub(crate) fn skip(&mut self, count: u64) -> Result<(), OutputError> {
        self.reserve(count)?;
        match usize::try_from(count) {
            Ok(count) if count <= BUFFER - self.filled => {
                self.buffer[self.filled..self.filled + count].fill(0);
                self.filled += count;
            }
            _ => {
                self.flush()?;
                self.offset += count;
            }
        }
        Ok(())
    }

    /// Adds zeros up to the next block.
    pub(crate) fn pad(&mut self) -> Result<(), OutputError> {
        self.skip(self.position().next_multiple_of(BLOCK) - self.position())
    }

    /// Frees the memory of blocks, which become zeros.
    pub(crate) fn punch(&mut self, offset: u64, bytes: u64) -> Result<(), OutputError> {
        let end = self.position().min(offset.saturating_add(bytes));
        self.flush()?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, end.saturating_sub(offset)) {
            // The image is the same on every file system.
            Err(Errno::OPNOTSUPP) => {
                let zeros = [0; BLOCK as usize];
                for block in (offset..end).step_by(BLOCK as usize) {
                    self.write_at(&zeros, block)?;
                }
                Ok(())
            }
            punched => Ok(punched?),
        }
    }

    /// Writes all bytes, gives the file its size, and writes `head` at `offset`, which is below the
    /// size.
    pub(crate) fn finish(mut self, head: &[u8], offset: u64) -> Result<(), OutputError> {
        self.flush()?;
        ftruncate(&self.file, self.offset)?;
        self.write_at(head, offset)
    }

    fn flush(&mut self) -> Result<(), OutputError> {
        self.write_at(&self.buffer[..self.filled], self.offset)?;
        self.offset += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> Result<(), OutputError> {
        while !bytes.is_empty() {
            match pwrite(&self.file, bytes, offset) {
                Ok(0) => return Err(OutputError::Io(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
