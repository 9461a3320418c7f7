//! A guest's side of a virtio-mmio device, for tests: it can follow the rules, and break each of them.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are this test's own, and small")]

use super::{
    device::{Interrupt, VirtioDevice},
    transport::MmioTransport,
};
use crate::memory::GuestMemory;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandboxvm_bare_guest::virtqueue::{Descriptor, chain};
pub use sandboxvm_bare_guest::virtqueue::{NEXT, Part, Rings, WRITE};
use std::sync::Arc;
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
        VIRTIO_CONFIG_S_NEEDS_RESET,
    },
    virtio_mmio::{
        VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DRIVER_FEATURES,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
        VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
        VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
        VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
    },
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Guest memory is [0, 1 MiB) and [2 MiB, 4 MiB).
pub const LOW_END: u64 = 0x10_0000;
pub const HIGH_START: u64 = 0x20_0000;
pub const HIGH_END: u64 = 0x40_0000;

/// Where tests may put buffers: below are the rings.
pub const BUFFERS: u64 = 0x8_0000;

/// Where tests put the rings of a queue.
pub fn rings_of(queue: u32, size: u32) -> Rings {
    let base = 0x1_0000 * u64::from(queue + 1);
    Rings { size, descriptors: base, available: base + 0x4000, used: base + 0x8000 }
}

#[derive(Debug)]
pub struct MockDriver {
    pub transport: MmioTransport,
    pub memory: Arc<GuestMemory>,
    rings: Vec<Rings>,
}

pub fn guest_memory() -> Arc<GuestMemory> {
    let ranges = [(GuestAddress(0), LOW_END as usize), (GuestAddress(HIGH_START), (HIGH_END - HIGH_START) as usize)];
    Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
}

impl MockDriver {
    /// Before any register access.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_memory(device, guest_memory())
    }

    pub fn with_memory(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> Self {
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let mut transport = MmioTransport::new(device, Arc::clone(&memory), interrupt).unwrap();
        let mut rings = Vec::new();
        for queue in 0..u32::try_from(transport.queue_count()).unwrap() {
            write(&mut transport, VIRTIO_MMIO_QUEUE_SEL, queue);
            rings.push(rings_of(queue, read(&transport, VIRTIO_MMIO_QUEUE_NUM_MAX)));
        }
        Self { transport, memory, rings }
    }

    /// Through the whole set-up as Linux does it, accepting everything but `refused` features.
    pub fn live_without(device: Box<dyn VirtioDevice>, refused: u64) -> Self {
        let mut driver = Self::new(device);
        let features = driver.offered_features() & !refused;
        driver.negotiate(features);
        let rings = driver.rings.clone();
        for (queue, rings) in (0..).zip(rings) {
            driver.set_up_queue(queue, rings);
        }
        driver.set_status(VIRTIO_CONFIG_S_DRIVER_OK);
        assert!(driver.transport.is_live(), "{:?}", driver.transport);
        driver
    }

    pub fn live(device: Box<dyn VirtioDevice>) -> Self {
        Self::live_without(device, 0)
    }

    /// The queue that an attacker goes for: the last, where a device with several takes its requests.
    pub fn attacked(&self) -> usize {
        self.rings.len() - 1
    }

    /// Where `queue`'s rings were last said to be.
    pub fn rings(&self, queue: usize) -> Rings {
        self.rings[queue]
    }

    pub fn read(&self, register: u32) -> u32 {
        read(&self.transport, register)
    }

    pub fn write(&mut self, register: u32, value: u32) {
        write(&mut self.transport, register, value);
    }

    pub fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Adds a bit to the status; returns the status after.
    pub fn set_status(&mut self, bit: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, self.status() | bit);
        self.status()
    }

    pub fn offered_features(&mut self) -> u64 {
        let mut features = 0;
        for half in [1, 0] {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            features = features << 32 | u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES));
        }
        features
    }

    /// To FEATURES_OK; returns whether the device kept it.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.set_status(VIRTIO_CONFIG_S_DRIVER);
        for (half, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.set_status(VIRTIO_CONFIG_S_FEATURES_OK) & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    pub fn set_up_queue(&mut self, queue: usize, rings: Rings) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
        self.write(VIRTIO_MMIO_QUEUE_NUM, rings.size);
        for (low, high, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, rings.descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, rings.available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, rings.used),
        ] {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        // A driver starts with cleared indices; a hostile one may name rings that are not in memory.
        for ring in [rings.available, rings.used] {
            let _ = self.memory.write_obj(0_u16, GuestAddress(ring.wrapping_add(2)));
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        self.rings[queue] = rings;
    }

    /// Whether the device gave up.
    pub fn needs_reset(&self) -> bool {
        self.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    pub fn set_descriptor(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let bytes = Descriptor { address, length, flags, next }.encode();
        self.memory.write_slice(&bytes, GuestAddress(self.rings[queue].descriptor(index))).unwrap();
    }

    /// Describes `parts` in descriptors `first`, `first + 1`, ...
    pub fn set_chain(&self, queue: usize, first: u16, parts: &[Part]) {
        for (index, Descriptor { address, length, flags, next }) in chain(first, parts) {
            self.set_descriptor(queue, index, address, length, flags, next);
        }
    }

    pub fn available_index(&self, queue: usize) -> u16 {
        self.memory.read_obj(GuestAddress(self.rings[queue].available + 2)).unwrap()
    }

    pub fn set_available_index(&self, queue: usize, index: u16) {
        self.memory.write_obj(index, GuestAddress(self.rings[queue].available + 2)).unwrap();
    }

    /// Puts a chain that begins at descriptor `head` on the available ring.
    pub fn publish(&self, queue: usize, head: u16) {
        let index = self.available_index(queue);
        let slot = u64::from(index) % u64::from(self.rings[queue].size);
        self.memory.write_obj(head, GuestAddress(self.rings[queue].available + 4 + 2 * slot)).unwrap();
        self.set_available_index(queue, index.wrapping_add(1));
    }

    pub fn used_index(&self, queue: usize) -> u16 {
        self.memory.read_obj(GuestAddress(self.rings[queue].used + 2)).unwrap()
    }

    /// Head and length of the newest used element.
    pub fn last_used(&self, queue: usize) -> (u32, u32) {
        let slot = u64::from(self.used_index(queue).wrapping_sub(1)) % u64::from(self.rings[queue].size);
        let at = self.rings[queue].used + 4 + 8 * slot;
        let at = |offset| GuestAddress(at + offset);
        (self.memory.read_obj(at(0)).unwrap(), self.memory.read_obj(at(4)).unwrap())
    }

    /// Notifies `queue` by its register, then lets the device's own descriptor be served like the event loop does, for
    /// at most `turns` times. Returns whether the device still wanted more.
    pub fn kick_for(&mut self, queue: usize, turns: usize) -> bool {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        for _ in 0..turns {
            if !self.host_fd_is_readable() {
                return false;
            }
            self.transport.host_ready();
        }
        self.host_fd_is_readable()
    }

    /// As [`MockDriver::kick_for`]; a device that does not come to rest fails the test.
    pub fn kick(&mut self, queue: usize) {
        assert!(!self.kick_for(queue, 10_000), "the device spins");
    }

    pub fn host_fd_is_readable(&self) -> bool {
        let Some(fd) = self.transport.host_fd() else { return false };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).unwrap() > 0
    }

    /// Interrupts raised since the last call.
    pub fn take_interrupts(&self) -> u64 {
        self.transport.interrupt().line().read().unwrap_or(0)
    }

    pub fn fill(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

fn read(transport: &MmioTransport, register: u32) -> u32 {
    let mut bytes = [0; 4];
    transport.read(register.into(), &mut bytes);
    u32::from_le_bytes(bytes)
}

fn write(transport: &mut MmioTransport, register: u32, value: u32) {
    transport.write(register.into(), &value.to_le_bytes());
}
