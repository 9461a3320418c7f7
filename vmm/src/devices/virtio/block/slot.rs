//! A file that is shorter than its disk. May not write it.

use super::{error::BlockError, scatter};
use crate::devices::virtio::chain::Buffers;
use sandboxvm_protocol::vmm::SLOT_CAPACITY;
use std::{fs::File, io};

/// A file in a disk of [`SLOT_CAPACITY`] bytes. What lies behind the end of the file reads as zeros, so
/// the disk looks the same with every file until the guest reads it.
#[derive(Debug)]
pub(super) struct SlotFile {
    pub(super) file: File,
    pub(super) length: u64,
}

impl SlotFile {
    /// Takes an open file, which may be empty and need not be a whole number of sectors.
    pub(super) fn new(file: File) -> Result<Self, BlockError> {
        let length = file.metadata().map_err(BlockError::Size)?.len();
        if length > SLOT_CAPACITY {
            return Err(BlockError::TooLong(length));
        }
        Ok(Self { file, length })
    }

    pub(super) fn read(&self, offset: u64, into: &mut Buffers<'_>) -> io::Result<()> {
        let in_file = self.length.saturating_sub(offset).min(into.len());
        scatter::read_exact_at(&self.file, offset, into, in_file)?;
        into.write_zeros(into.len());
        Ok(())
    }
}
