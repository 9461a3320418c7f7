//! A volume: a file whose content outlives the machine, in a disk of [`SLOT_CAPACITY`] bytes. The file keeps
//! its length: nothing behind its end is ever written.

use super::{
    error::{BlockError, RequestError},
    scatter,
    slot::SlotFile,
};
use crate::devices::virtio::chain::Buffers;
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Zeros that are written in one call where the host's file system cannot make holes.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// An open volume.
#[derive(Debug)]
pub(super) struct Volume {
    content: SlotFile,
    read_only: bool,
}

impl Volume {
    pub(super) fn new(file: File, read_only: bool) -> Result<Self, BlockError> {
        Ok(Self { content: SlotFile::new(file)?, read_only })
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Returns the length of its file in bytes.
    pub(super) fn length(&self) -> u64 {
        self.content.length
    }

    pub(super) fn read(&self, offset: u64, into: &mut Buffers<'_>) -> io::Result<()> {
        self.content.read(offset, into)
    }

    /// Fails for a range that is not all in the file.
    pub(super) fn write(&self, offset: u64, from: &mut Buffers<'_>) -> Result<(), RequestError> {
        let length = from.len();
        self.check(RequestError::ReadOnly, offset, length)?;
        Ok(scatter::write_all_at(&self.content.file, offset, from, length)?)
    }

    pub(super) fn flush(&self) -> Result<(), RequestError> {
        self.check(RequestError::Unsupported, 0, 0)?;
        Ok(self.content.file.sync_data()?)
    }

    /// Makes a hole, which is advice: a file system without holes keeps the content.
    pub(super) fn discard(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        self.check(RequestError::Unsupported, offset, length)?;
        match self.make_hole(offset, length) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            made => Ok(made.map_err(io::Error::from)?),
        }
    }

    pub(super) fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        self.check(RequestError::Unsupported, offset, length)?;
        match self.make_hole(offset, length) {
            Err(Errno::OPNOTSUPP) => Ok(self.write_zeros(offset, length)?),
            made => Ok(made.map_err(io::Error::from)?),
        }
    }

    fn check(&self, if_read_only: RequestError, offset: u64, length: u64) -> Result<(), RequestError> {
        if self.read_only {
            return Err(if_read_only);
        }
        let end = offset.checked_add(length).ok_or(RequestError::Range)?;
        if end <= self.content.length { Ok(()) } else { Err(RequestError::Range) }
    }

    fn make_hole(&self, offset: u64, length: u64) -> Result<(), Errno> {
        if length == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.content.file, hole, offset, length)
    }

    fn write_zeros(&self, mut offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        while offset < end {
            let count = usize::try_from(end - offset).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.content.file.write_all_at(&ZEROS[..count], offset)?;
            offset += count as u64;
        }
        Ok(())
    }
}
