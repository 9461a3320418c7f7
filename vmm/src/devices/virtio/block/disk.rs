//! What a virtio-blk device reads and writes: a [`Disk`].
//!
//! Offsets and lengths given to a disk are whole sectors inside it: the request parser checked them.

use super::{
    error::{BlockError, RequestError},
    layered::LayeredDisk,
    scatter,
    slot::SlotFile,
    volume::Volume,
};
use crate::devices::virtio::chain::Buffers;
use sandboxvm_protocol::vmm::SLOT_CAPACITY;
use std::{
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes in a sector, the unit of virtio-blk addresses whatever the block size (virtio 1.2, 5.2.4).
pub(super) const SECTOR: u64 = 512;

/// Sectors in a block of a writable disk's layers (4 KiB).
pub(super) const BLOCK_SECTORS: u32 = 8;

/// A layered disk that the VM's control plane reaches too, to freeze and push layers while no request is running.
pub type SharedLayeredDisk = Arc<Mutex<LayeredDisk>>;

/// A disk.
#[derive(Debug)]
pub(super) enum Disk {
    /// A raw image that is never written.
    ReadOnly(RawImage),
    /// A file that is never written, and zeros up to the capacity.
    Slot(SlotFile),
    /// A file that outlives the machine, and zeros up to the capacity.
    Volume(Volume),
    /// Copy-on-write layers; also the size in bytes, which never changes.
    Layered(SharedLayeredDisk, u64),
}

impl Disk {
    pub(super) fn sectors(&self) -> u64 {
        match self {
            Self::ReadOnly(image) => image.size / SECTOR,
            Self::Slot(_) | Self::Volume(_) => SLOT_CAPACITY / SECTOR,
            Self::Layered(_, size) => size / SECTOR,
        }
    }

    /// Sectors from the first on that a driver may write, if it may write any.
    pub(super) fn writable_sectors(&self) -> u64 {
        match self {
            Self::Volume(volume) => volume.length() / SECTOR,
            Self::ReadOnly(_) | Self::Slot(_) | Self::Layered(..) => self.sectors(),
        }
    }

    pub(super) fn is_read_only(&self) -> bool {
        match self {
            Self::ReadOnly(_) | Self::Slot(_) => true,
            Self::Volume(volume) => volume.is_read_only(),
            Self::Layered(..) => false,
        }
    }

    pub(super) fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(image) => scatter::read_exact_at(&image.file, offset, into, into.len())?,
            Self::Slot(slot) => slot.read(offset, into)?,
            Self::Volume(volume) => volume.read(offset, into)?,
            Self::Layered(disk, _) => lock(disk).read(offset, into)?,
        }
        Ok(())
    }

    /// Writes all of `from`. A read-only disk says so in its features, so a driver does not ask.
    pub(super) fn write(&self, offset: u64, from: &mut Buffers<'_>) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(_) | Self::Slot(_) => Err(RequestError::ReadOnly),
            Self::Volume(volume) => volume.write(offset, from),
            Self::Layered(disk, _) => Ok(lock(disk).write(offset, from)?),
        }
    }

    /// Makes everything written so far durable.
    pub(super) fn flush(&self) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(_) | Self::Slot(_) => Err(RequestError::Unsupported),
            Self::Volume(volume) => Ok(volume.flush()?),
            Self::Layered(disk, _) => Ok(lock(disk).flush()?),
        }
    }

    /// Lets the whole blocks in a range read as zeros, and returns their space to the host.
    pub(super) fn discard(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(_) | Self::Slot(_) => Err(RequestError::Unsupported),
            Self::Volume(volume) => volume.discard(offset, length),
            Self::Layered(disk, _) => Ok(lock(disk).discard(offset, length)?),
        }
    }

    /// Lets a range read as zeros.
    pub(super) fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(_) | Self::Slot(_) => Err(RequestError::Unsupported),
            Self::Volume(volume) => volume.write_zeroes(offset, length),
            Self::Layered(disk, _) => Ok(lock(disk).write_zeroes(offset, length)?),
        }
    }
}

pub(super) fn lock(disk: &Mutex<LayeredDisk>) -> MutexGuard<'_, LayeredDisk> {
    // The table is changed after the file, in one step: a panic elsewhere leaves a whole disk.
    disk.lock().unwrap_or_else(PoisonError::into_inner)
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
