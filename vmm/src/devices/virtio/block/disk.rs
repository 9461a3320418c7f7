//! What a virtio-blk device reads and writes: a [`Disk`].
//!
//! Offsets and lengths given to a disk are whole sectors inside it: the request parser checked them.

use super::{error::BlockError, layered::LayeredDisk, scatter};
use crate::devices::virtio::chain::Buffers;
use sandboxvm_protocol::vmm::SLOT_CAPACITY;
use std::{
    fs::File,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes in a sector, the unit of virtio-blk addresses whatever the block size (virtio 1.2, 5.2.4).
pub(super) const SECTOR: u64 = 512;

/// Sectors in a block of a writable disk's layers (4 KiB).
pub(super) const BLOCK_SECTORS: u32 = 8;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The driver asked for something this disk does not do.
    #[error("not supported")]
    Unsupported,
    /// The driver asked for sectors that are not there, or too many.
    #[error("outside the disk")]
    Range,
    /// The disk is never written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The host failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A layered disk that the VM's control plane reaches too, to freeze and push layers while no request is running.
pub type SharedLayeredDisk = Arc<Mutex<LayeredDisk>>;

/// A disk.
#[derive(Debug)]
pub(super) enum Disk {
    /// A raw image that is never written.
    ReadOnly(RawImage),
    /// A file that is never written, and zeros up to the capacity.
    Slot(Slot),
    /// Copy-on-write layers; also the size in bytes, which never changes.
    Layered(SharedLayeredDisk, u64),
}

impl Disk {
    pub(super) fn sectors(&self) -> u64 {
        match self {
            Self::ReadOnly(image) => image.size / SECTOR,
            Self::Slot(_) => SLOT_CAPACITY / SECTOR,
            Self::Layered(_, size) => size / SECTOR,
        }
    }

    pub(super) fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly(_) | Self::Slot(_))
    }

    pub(super) fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(image) => scatter::read_exact_at(&image.file, offset, into, into.len())?,
            Self::Slot(slot) => slot.read(offset, into)?,
            Self::Layered(disk, _) => lock(disk).read(offset, into)?,
        }
        Ok(())
    }

    /// The layers to write to. A read-only disk says so in its features, so a driver does not ask.
    fn writable(&self, otherwise: RequestError) -> Result<MutexGuard<'_, LayeredDisk>, RequestError> {
        match self {
            Self::ReadOnly(_) | Self::Slot(_) => Err(otherwise),
            Self::Layered(disk, _) => Ok(lock(disk)),
        }
    }

    pub(super) fn write(&self, offset: u64, from: &mut Buffers<'_>) -> Result<(), RequestError> {
        Ok(self.writable(RequestError::ReadOnly)?.write(offset, from)?)
    }

    /// Makes everything written so far durable.
    pub(super) fn flush(&self) -> Result<(), RequestError> {
        Ok(self.writable(RequestError::Unsupported)?.flush()?)
    }

    /// Lets the whole blocks in a range read as zeros, and returns their space to the host.
    pub(super) fn discard(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        Ok(self.writable(RequestError::Unsupported)?.discard(offset, length)?)
    }

    /// Lets a range read as zeros.
    pub(super) fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        Ok(self.writable(RequestError::Unsupported)?.write_zeroes(offset, length)?)
    }
}

pub(super) fn lock(disk: &Mutex<LayeredDisk>) -> MutexGuard<'_, LayeredDisk> {
    // The table is changed after the file, in one step: a panic elsewhere leaves a whole disk.
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file in a disk of [`SLOT_CAPACITY`] bytes. What lies behind the end of the file reads as zeros, so
/// the disk looks the same with every file until the guest reads it.
#[derive(Debug)]
pub(super) struct Slot {
    file: File,
    length: u64,
}

impl Slot {
    /// Takes an open file, which may be empty and need not be a whole number of sectors.
    pub(super) fn new(file: File) -> Result<Self, BlockError> {
        let length = file.metadata().map_err(BlockError::Size)?.len();
        if length > SLOT_CAPACITY {
            return Err(BlockError::TooLong(length));
        }
        Ok(Self { file, length })
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> io::Result<()> {
        let in_file = self.length.saturating_sub(offset).min(into.len());
        scatter::read_exact_at(&self.file, offset, into, in_file)?;
        into.write_zeros(into.len());
        Ok(())
    }
}

/// A raw image: sector n is at byte 512 * n of a file.
#[derive(Debug)]
pub(super) struct RawImage {
    file: File,
    size: u64,
}

impl RawImage {
    /// Takes an open file, or block device, as a disk.
    pub(super) fn new(file: File) -> Result<Self, BlockError> {
        // Seeking finds the size of a block device too.
        let size =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| BlockError::Size(error.into()))?;
        if size == 0 {
            return Err(BlockError::Empty);
        }
        if size % SECTOR != 0 {
            return Err(BlockError::Truncated(size));
        }
        Ok(Self { file, size })
    }
}
