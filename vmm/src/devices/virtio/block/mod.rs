//! virtio-blk (virtio 1.2, 5.2): one queue of requests over a read-only image, a slot, a volume or a [`LayeredDisk`].
//!
//! Requests are served synchronously on the calling thread, straight between the host file and guest memory, with no
//! bounce buffer. A VM is one event loop: no thread or ring per disk to pay for in an idle clone, and between two calls
//! there is no request in flight, so a snapshot, fork or reset never has to wait for one or save one. The price is that
//! a read the page cache does not hold delays the VM's other devices by that one read; a single wake-up serves at most
//! `REQUESTS_PER_WAKE` requests or `BYTES_PER_WAKE` bytes and then hands the event loop back.

mod disk;
mod disks;
mod error;
mod kind;
mod layer;
mod layered;
mod merging;
mod pace;
mod request;
mod scatter;
mod slot;
#[cfg(test)]
mod tests;
mod volume;

pub use disk::SharedLayeredDisk;
pub use disks::{DisksError, MergedLayers, Merging, PreparedDisks, WritableDisk, WritableDisks};
pub use error::BlockError;
pub use kind::BlockKind;
pub use layer::{BLOCK_SIZE, DISK_SIZE_MAX, LayerError};
pub use layered::{LAYERS_MAX, LayeredDisk, LayeredDiskError, PreparedLayers};
pub use pace::DiskPace;

use super::{
    chain::Chain,
    device::{DeviceContext, DeviceError, DeviceType, VirtioDevice, read_config_space},
    resume::Resume,
};
use disk::{Disk, RawImage};
use request::{DiskId, QUEUE_SIZE, Request};
use slot::SlotFile;
use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex},
};
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_WRITE_ZEROES,
    },
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use virtio_queue::QueueT;
use volume::Volume;

/// Block device (virtio 1.2, 5.2).
const TYPE: DeviceType = DeviceType::new(2, "Block");

/// Requests served before the event loop gets its turn.
const REQUESTS_PER_WAKE: u32 = 32;

/// Bytes of data served before the event loop gets its turn; one request may go over it.
const BYTES_PER_WAKE: u64 = 4 * 1024 * 1024;

/// A virtio-blk device.
#[derive(Debug)]
pub struct BlockDevice {
    disk: Disk,
    id: DiskId,
    config: Vec<u8>,
    pace: DiskPace,
    /// For requests that were left over: those of a wake-up that used up its budget, and those that the pace holds back.
    resume: Resume,
}

impl BlockDevice {
    /// A disk of which the guest can only read: `image`, sector n at byte 512 * n.
    ///
    /// # Errors
    /// When the image is empty or not a whole number of sectors.
    pub fn read_only(image: File) -> Result<Self, BlockError> {
        Self::new(Disk::ReadOnly(RawImage::new(image)?), "sandboxvm-image")
    }

    /// A disk of which the guest can only read: `file`, then zeros up to
    /// [`SLOT_CAPACITY`](sandboxvm_protocol::vmm::SLOT_CAPACITY).
    ///
    /// # Errors
    /// When the file is longer than that.
    pub fn slot(file: File) -> Result<Self, BlockError> {
        Self::new(Disk::Slot(SlotFile::new(file)?), "sandboxvm-slot")
    }

    /// A disk whose content outlives the machine: `file`, then zeros that cannot be written up to
    /// [`SLOT_CAPACITY`](sandboxvm_protocol::vmm::SLOT_CAPACITY).
    ///
    /// # Errors
    /// When the file is longer than that.
    pub fn volume(file: File, read_only: bool) -> Result<Self, BlockError> {
        Self::new(Disk::Volume(Volume::new(file, read_only)?), "sandboxvm-volume")
    }

    /// A disk of copy-on-write `layers`, oldest first, over a raw `template`; see [`LayeredDisk::open`].
    ///
    /// # Errors
    /// As [`LayeredDisk::open`].
    pub fn writable(template: File, layers: Vec<File>) -> Result<Self, BlockError> {
        Ok(Self::writable_and_layers(template, layers)?.0)
    }

    /// As [`BlockDevice::writable`], with the layers for the event loop alone to freeze, switch or merge them.
    fn writable_and_layers(template: File, layers: Vec<File>) -> Result<(Self, SharedLayeredDisk), BlockError> {
        let disk = LayeredDisk::open(template, layers)?;
        let size = disk.size();
        let layers = Arc::new(Mutex::new(disk));
        let device = Self::new(Disk::Layered(Arc::clone(&layers), size), "sandboxvm-disk")?;
        Ok((device, layers))
    }

    fn new(disk: Disk, id: &str) -> Result<Self, BlockError> {
        let mut padded = DiskId::default();
        for (to, from) in padded.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        let config = request::config_space(disk.sectors(), disk.is_read_only());
        let resume = Resume::new().map_err(BlockError::Timer)?;
        Ok(Self { disk, id: padded, config, pace: DiskPace::default(), resume })
    }

    /// Has it serve requests at this pace, which other disks may share.
    #[must_use]
    pub fn at_pace(self, pace: DiskPace) -> Self {
        Self { pace, ..self }
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
                    self.resume.after(delay)?;
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
                    self.resume.now()?;
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
        TYPE
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
        Some(self.resume.as_fd())
    }

    fn host_ready(&mut self, context: Option<&mut DeviceContext<'_>>) -> Result<(), DeviceError> {
        self.resume.drain();
        match context {
            Some(context) if context.queues[0].ready() => self.serve(context),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.resume.drain();
    }
}
