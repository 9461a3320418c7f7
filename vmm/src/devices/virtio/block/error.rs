//! Why a disk cannot be opened, or a request not carried out.

use super::layered::LayeredDiskError;
use sandboxvm_protocol::vmm::SLOT_CAPACITY;
use std::io;

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The image's size cannot be found out.
    #[error("cannot find out the disk image's size: {0}")]
    Size(io::Error),
    /// An image of zero bytes.
    #[error("the disk image is empty: was its making interrupted?")]
    Empty,
    /// Not a whole number of sectors.
    #[error("the disk image has {0} bytes, which is not a multiple of 512: is it truncated?")]
    Truncated(u64),
    /// A file that is longer than its slot.
    #[error("the file in a slot has {0} bytes, and a slot has {max}", max = SLOT_CAPACITY)]
    TooLong(u64),
    /// The layers do not make a disk.
    #[error(transparent)]
    Layers(#[from] LayeredDiskError),
    /// The host gives no timer.
    #[error("cannot make a timer for a disk: {0}")]
    Timer(io::Error),
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
