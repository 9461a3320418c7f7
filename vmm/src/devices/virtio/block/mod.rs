//! virtio-blk (virtio 1.2, 5.2): one queue of requests over a read-only image or a [`LayeredDisk`].
//!
//! Requests are served synchronously on the calling thread, straight between the host file and guest memory, with no
//! bounce buffer. A VM is one event loop: no thread or ring per disk to pay for in an idle clone, and between two calls
//! there is no request in flight, so a snapshot, fork or reset never has to wait for one or save one. The price is that
//! a read the page cache does not hold delays the VM's other devices by that one read; a single wake-up serves at most
//! `REQUESTS_PER_WAKE` requests or `BYTES_PER_WAKE` bytes and then hands the event loop back.

mod disk;
mod layer;
mod layered;
mod merging;
mod pace;
mod request;
mod scatter;
#[cfg(test)]
mod tests;

pub use disk::SharedLayeredDisk;
pub use layer::{BLOCK_SIZE, DISK_SIZE_MAX, LayerError};
pub use layered::{LAYERS_MAX, LayeredDisk, LayeredDiskError, PreparedLayers};
pub use pace::DiskPace;

use super::{
    chain::Chain,
    device::{DeviceContext, DeviceError, DeviceType, VirtioDevice, read_config_space},
};
use disk::{Disk, RawImage};
use request::Request;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    },
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use virtio_queue::QueueT;

/// Descriptors in the queue. Small on purpose: the guest's block layer sets up as many request structures, and every
/// guest-kernel instruction of that is boot time.
const QUEUE_SIZE: u16 = 64;

/// Data segments in one request: the queue without the header and the status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes in one segment. With [`SEGMENTS_MAX`] this bounds a request to just under 4 MiB, which is enforced.
const SEGMENT_BYTES_MAX: u32 = 64 * 1024;

/// Bytes of data in one read or write request.
const REQUEST_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;

/// Requests served before the event loop gets its turn.
const REQUESTS_PER_WAKE: u32 = 32;

/// Bytes of data served before the event loop gets its turn; one request may go over it.
const BYTES_PER_WAKE: u64 = 4 * 1024 * 1024;

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
    /// The layers do not make a disk.
    #[error(transparent)]
    Layers(#[from] LayeredDiskError),
    /// The host gives no timer.
    #[error("cannot make a timer for a disk: {0}")]
    Timer(io::Error),
}

/// A disk's identifier as GET_ID returns it, zero-padded.
type DiskId = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// A virtio-blk device.
#[derive(Debug)]
pub struct BlockDevice {
    disk: Disk,
    id: DiskId,
    config: Vec<u8>,
    pace: DiskPace,
    /// Goes off when requests that were left over are to be served: those of a wake-up that used up its budget, and those
    /// that have to wait for the pace.
    timer: OwnedFd,
}

impl BlockDevice {
    /// A disk of which the guest can only read: `image`, sector n at byte 512 * n.
    ///
    /// # Errors
    /// When the image is empty or not a whole number of sectors.
    pub fn read_only(image: File) -> Result<Self, BlockError> {
        Self::new(Disk::ReadOnly(RawImage::new(image)?), "sandboxvm-image")
    }

    /// A disk of copy-on-write `layers`, oldest first, over a raw `template`; see [`LayeredDisk::open`].
    ///
    /// # Errors
    /// As [`LayeredDisk::open`].
    pub fn writable(template: File, layers: Vec<File>) -> Result<Self, BlockError> {
        let disk = LayeredDisk::open(template, layers)?;
        let size = disk.size();
        Self::new(Disk::Layered(Arc::new(Mutex::new(disk)), size), "sandboxvm-disk")
    }

    fn new(disk: Disk, id: &str) -> Result<Self, BlockError> {
        let mut padded = DiskId::default();
        for (to, from) in padded.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        let config = request::config_space(disk.sectors(), disk.is_read_only());
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .map_err(|error| BlockError::Timer(error.into()))?;
        Ok(Self { disk, id: padded, config, pace: DiskPace::default(), timer })
    }

    /// Has it serve requests at this pace, which other disks may share.
    #[must_use]
    pub fn at_pace(self, pace: DiskPace) -> Self {
        Self { pace, ..self }
    }

    /// The layers of a writable disk, for the event loop alone to freeze, switch or merge them.
    #[must_use]
    pub fn layered_disk(&self) -> Option<SharedLayeredDisk> {
        match &self.disk {
            Disk::ReadOnly(_) => None,
            Disk::Layered(disk, _) => Some(Arc::clone(disk)),
        }
    }

    /// Asks the event loop to come back after this time.
    fn come_back(&self, delay: Duration) -> Result<(), DeviceError> {
        let value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            // Zero would disarm it.
            tv_nsec: delay.subsec_nanos().max(1).into(),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)
            .map(drop)
            .map_err(|error| DeviceError::Host { what: "asking for another turn", source: error.into() })
    }

    fn drain_timer(&self) {
        // Nothing to read is fine: a reset came in between.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
    }

    fn serve(&mut self, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        let broken = |error: virtio_queue::Error| DeviceError::Queue { queue: 0, what: error.to_string() };
        let memory = context.memory;
        let queue = &mut context.queues[0];
        let (mut requests, mut bytes) = (0, 0);
        queue.disable_notification(memory).map_err(broken)?;
        'wake: loop {
            loop {
                if let Some(delay) = self.pace.delay() {
                    // Notifications stay off, as below; what is not taken waits in the guest's memory.
                    self.come_back(delay)?;
                    break 'wake;
                }
                let Some(chain) = Chain::pop(queue, memory).map_err(|error| error.on(0))? else { break };
                let head = chain.head;
                bytes += chain.readable.len() + chain.writable.len();
                requests += 1;
                let request = Request::parse(chain)?;
                self.pace.spend(request.cost());
                let used = request.execute(&self.disk, &self.id);
                queue.add_used(memory, head, used).map_err(broken)?;
                if requests >= REQUESTS_PER_WAKE || bytes >= BYTES_PER_WAKE {
                    // Notifications stay off: the event loop comes back by itself.
                    self.come_back(Duration::ZERO)?;
                    break 'wake;
                }
            }
            if !queue.enable_notification(memory).map_err(broken)? {
                break;
            }
        }
        if requests > 0 && queue.needs_notification(memory).map_err(broken)? {
            context.interrupt.signal_used();
        }
        Ok(())
    }
}

impl VirtioDevice for BlockDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn queue_limits(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn offered_features(&self) -> u64 {
        let always = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_SIZE_MAX;
        always
            | if self.disk.is_read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        read_config_space(&self.config, offset, into);
    }

    fn activate(&mut self, _context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn queue_notified(&mut self, _queue: usize, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        self.serve(context)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }

    fn host_ready(&mut self, context: Option<&mut DeviceContext<'_>>) -> Result<(), DeviceError> {
        self.drain_timer();
        match context {
            Some(context) if context.queues[0].ready() => self.serve(context),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.drain_timer();
    }
}
