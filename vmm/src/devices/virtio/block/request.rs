//! One virtio-blk request (virtio 1.2, 5.2.6): from a descriptor chain to a status byte.
//!
//! Layout in the chain: a 16-byte header the device reads, data in one direction or the other, one status byte the
//! device writes, last. Anything that leaves no place for a status is a broken queue; everything else is answered with
//! one.

use super::{
    disk::{BLOCK_SECTORS, Disk, SECTOR},
    error::RequestError,
    pace::Cost,
};
use crate::devices::virtio::{
    chain::{Buffers, Chain},
    device::DeviceError,
};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::VolatileSlice;

/// Descriptors in the queue. Small on purpose: the guest's block layer sets up as many request structures, and every
/// guest-kernel instruction of that is boot time.
pub(super) const QUEUE_SIZE: u16 = 64;

/// Data segments in one request: the queue without the header and the status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes in one segment. With [`SEGMENTS_MAX`] this bounds a request to just under 4 MiB, which is enforced.
const SEGMENT_BYTES_MAX: u32 = 64 * 1024;

/// Bytes of data in one read or write request.
const REQUEST_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;

/// A disk's identifier as GET_ID returns it, zero-padded.
pub(super) type DiskId = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// Bytes of a `struct virtio_blk_discard_write_zeroes`.
const RANGE: usize = 16;

/// Ranges in one DISCARD or WRITE_ZEROES request.
const RANGES_MAX: u32 = 16;

/// Sectors in one such range: 256 MiB, so that a request stays a matter of milliseconds.
const RANGE_SECTORS_MAX: u32 = 512 * 1024;

/// `struct virtio_blk_config` (5.2.4), up to what the negotiated features can make a driver read.
pub(super) fn config_space(sectors: u64, read_only: bool) -> Vec<u8> {
    let mut config = Vec::with_capacity(60);
    config.extend(sectors.to_le_bytes());
    config.extend(SEGMENT_BYTES_MAX.to_le_bytes());
    config.extend(SEGMENTS_MAX.to_le_bytes());
    if !read_only {
        // geometry, blk_size, topology, writeback, num_queues: features not offered.
        config.resize(36, 0);
        config.extend(RANGE_SECTORS_MAX.to_le_bytes()); // max_discard_sectors
        config.extend(RANGES_MAX.to_le_bytes()); // max_discard_seg
        config.extend(BLOCK_SECTORS.to_le_bytes()); // discard_sector_alignment
        config.extend(RANGE_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
        config.extend(RANGES_MAX.to_le_bytes()); // max_write_zeroes_seg
        config.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
    }
    config
}

/// A request that can be answered.
#[derive(Debug)]
pub(super) struct Request<'m> {
    kind: u32,
    sector: u64,
    from_driver: Buffers<'m>,
    to_driver: Buffers<'m>,
    status: VolatileSlice<'m>,
}

impl<'m> Request<'m> {
    pub(super) fn parse(mut chain: Chain<'m>) -> Result<Self, DeviceError> {
        let broken = |what: &str| DeviceError::Queue { queue: 0, what: what.to_owned() };
        let mut header = [0; 16];
        if chain.readable.read(&mut header) < header.len() {
            return Err(broken("a block request has no room for its header"));
        }
        let status = chain.writable.split_last().ok_or_else(|| broken("a block request has no status byte"))?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        Ok(Self {
            kind: u32::from_le_bytes([a, b, c, d]),
            sector: u64::from_le_bytes(sector),
            from_driver: chain.readable,
            to_driver: chain.writable,
            status,
        })
    }

    /// What the pace of the disks is charged, whether the request can be carried out or not. Each range to be cleared is an
    /// operation; what a guest states beyond the longest request is refused and costs no more than that.
    pub(super) fn cost(&self) -> Cost {
        let data = self.from_driver.len().max(self.to_driver.len()).min(REQUEST_BYTES_MAX);
        match self.kind {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => Cost { bytes: data, operations: 1 },
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                Cost { bytes: 0, operations: (data / RANGE as u64).clamp(1, RANGES_MAX.into()) }
            }
            _ => Cost { bytes: 0, operations: 1 },
        }
    }

    /// Carries the request out and answers it. Returns how many bytes of the chain the device may have written.
    pub(super) fn execute(mut self, disk: &Disk, id: &DiskId) -> u32 {
        let room = self.to_driver.len();
        let status = match self.carry_out(disk, id) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(RequestError::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            Err(RequestError::Range | RequestError::ReadOnly | RequestError::Io(_)) => VIRTIO_BLK_S_IOERR,
        };
        // The three values are 0, 1 and 2.
        self.status.copy_from(&[u8::try_from(status).unwrap_or(u8::MAX)]);
        // A chain holds less than 4 GiB, the status included.
        u32::try_from(room + 1).unwrap_or(u32::MAX)
    }

    fn carry_out(&mut self, disk: &Disk, id: &DiskId) -> Result<(), RequestError> {
        match self.kind {
            VIRTIO_BLK_T_IN => {
                let offset = checked_range(disk.sectors(), self.sector, self.to_driver.len())?;
                disk.read(offset, &mut self.to_driver)
            }
            VIRTIO_BLK_T_OUT => {
                let offset = checked_range(disk.writable_sectors(), self.sector, self.from_driver.len())?;
                disk.write(offset, &mut self.from_driver)
            }
            VIRTIO_BLK_T_FLUSH => disk.flush(),
            VIRTIO_BLK_T_GET_ID => {
                self.to_driver.write(id);
                Ok(())
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.clear_ranges(disk),
            _ => Err(RequestError::Unsupported),
        }
    }

    fn clear_ranges(&mut self, disk: &Disk) -> Result<(), RequestError> {
        if disk.is_read_only() {
            return Err(RequestError::Unsupported);
        }
        let mut bytes = [0; RANGES_MAX as usize * RANGE];
        let length = self.from_driver.read(&mut bytes);
        let ranges = &bytes[..length];
        if ranges.is_empty() || !length.is_multiple_of(RANGE) || !self.from_driver.is_empty() {
            return Err(RequestError::Range);
        }
        // All are checked before the first is touched.
        let discard = self.kind == VIRTIO_BLK_T_DISCARD;
        let ranges = ranges.chunks_exact(RANGE).map(|range| clear_range(disk, range, discard));
        for (offset, length) in ranges.collect::<Result<Vec<_>, _>>()? {
            if discard {
                disk.discard(offset, length)?;
            } else {
                disk.write_zeroes(offset, length)?;
            }
        }
        Ok(())
    }
}

/// The byte range that one `struct virtio_blk_discard_write_zeroes` names.
fn clear_range(disk: &Disk, range: &[u8], discard: bool) -> Result<(u64, u64), RequestError> {
    let (sector, rest) = range.split_first_chunk().ok_or(RequestError::Range)?;
    let (count, rest) = rest.split_first_chunk().ok_or(RequestError::Range)?;
    let (flags, _) = rest.split_first_chunk().ok_or(RequestError::Range)?;
    let (count, flags) = (u32::from_le_bytes(*count), u32::from_le_bytes(*flags));
    let known = if discard { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
    if flags & !known != 0 {
        return Err(RequestError::Unsupported);
    }
    if count > RANGE_SECTORS_MAX {
        return Err(RequestError::Range);
    }
    let length = u64::from(count) * SECTOR;
    Ok((byte_range(disk.writable_sectors(), u64::from_le_bytes(*sector), length)?, length))
}

/// Checks a read or write of `length` bytes at `sector`, of which the driver may use those below `sectors`; returns its
/// byte offset.
fn checked_range(sectors: u64, sector: u64, length: u64) -> Result<u64, RequestError> {
    if !length.is_multiple_of(SECTOR) || length > REQUEST_BYTES_MAX {
        return Err(RequestError::Range);
    }
    byte_range(sectors, sector, length)
}

fn byte_range(sectors: u64, sector: u64, length: u64) -> Result<u64, RequestError> {
    let end = sector.checked_add(length / SECTOR).ok_or(RequestError::Range)?;
    if end > sectors {
        return Err(RequestError::Range);
    }
    Ok(sector * SECTOR)
}
