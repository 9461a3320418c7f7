//! What a virtio-blk device reads and writes: a [`Disk`].
//!
//! Offsets and lengths given to a disk are whole sectors inside it: the request parser checked them.

use super::scatter;
use crate::devices::virtio::chain::Buffers;
use std::{fs::File, io};

/// Bytes in a sector, the unit of virtio-blk addresses whatever the block size (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// Sectors in a block of a writable disk's layers (4 KiB).
pub(super) const BLOCK_SECTORS: u32 = 8;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image's size cannot be found out.
    #[error("cannot find out the disk image's size: {0}")]
    Size(io::Error),
    /// An image of zero bytes.
    #[error("the disk image is empty: was its making interrupted?")]
    Empty,
    /// Not a whole number of sectors.
    #[error("the disk image has {0} bytes, which is not a multiple of 512: is it truncated?")]
    Truncated(u64),
}

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

/// A disk.
#[derive(Debug)]
pub enum Disk {
    /// A raw image that is never written.
    ReadOnly(RawImage),
}

impl Disk {
    /// Its size.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        match self {
            Self::ReadOnly(image) => image.size / SECTOR,
        }
    }

    /// Whether all writes fail.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::ReadOnly(_) => true,
        }
    }

    pub(super) fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(image) => Ok(scatter::read_exact_at(&image.file, offset, into, into.len())?),
        }
    }

    pub(super) fn write(&mut self, _offset: u64, _from: &mut Buffers<'_>) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(_) => Err(RequestError::ReadOnly),
        }
    }

    /// Makes everything written so far durable.
    pub(super) fn flush(&mut self) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(_) => Err(RequestError::Unsupported),
        }
    }

    pub(super) fn discard(&mut self, _offset: u64, _length: u64) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(_) => Err(RequestError::Unsupported),
        }
    }

    pub(super) fn write_zeroes(&mut self, _offset: u64, _length: u64) -> Result<(), RequestError> {
        match self {
            Self::ReadOnly(_) => Err(RequestError::Unsupported),
        }
    }
}

/// A raw image: sector n is at byte 512 * n of a file.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    size: u64,
}

impl RawImage {
    /// Takes an open file, or block device, as a disk.
    ///
    /// # Errors
    /// When it is empty or not a whole number of sectors.
    pub fn new(file: File) -> Result<Self, DiskError> {
        // Seeking finds the size of a block device too.
        let size =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|error| DiskError::Size(error.into()))?;
        if size == 0 {
            return Err(DiskError::Empty);
        }
        if size % SECTOR != 0 {
            return Err(DiskError::Truncated(size));
        }
        Ok(Self { file, size })
    }
}
