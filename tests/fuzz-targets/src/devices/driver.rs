//! The guest's side of a virtio-mmio device, as the input describes it: writes to registers,
//! descriptors, rings and memory in any order, mostly nearly valid. The device must not panic, must
//! not access anything outside of guest memory, and must become idle when its driver requests
//! nothing more.

use crate::input::Input;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandboxvm_vmm::{
    devices::virtio::{
        device::{Interrupt, VirtioDevice},
        transport::MmioTransport,
    },
    memory::GuestMemory,
};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Guest memory is [0, 1 MiB) and [2 MiB, 3 MiB).
const LOW_END: u64 = 0x10_0000;
const HIGH_START: u64 = 0x20_0000;
const HIGH_END: u64 = 0x30_0000;
/// Number of pages in both ranges.
pub(crate) const PAGES: u64 = (LOW_END + HIGH_END - HIGH_START) / 4096;
/// Address of the rings unless the input moves them: 64 KiB for each queue.
const RINGS: u64 = 0x1_0000;
/// Address near which most buffers are.
const BUFFERS: u64 = 0x8_0000;
/// Maximum number of actions of one input.
const STEPS: usize = 400;
/// Number of turns of the event loop after which a device that still wants one is considered to
/// spin.
const TURNS: usize = 10_000;

const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];

/// A device, its memory, and the addresses of the rings that the driver last set.
pub(crate) struct Driver {
    transport: MmioTransport,
    memory: Arc<GuestMemory>,
    rings: Vec<[u64; 3]>,
}

impl Driver {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let bytes = |length: u64| usize::try_from(length).expect("a MiB");
        let ranges = [(GuestAddress(0), bytes(LOW_END)), (GuestAddress(HIGH_START), bytes(HIGH_END - HIGH_START))];
        let memory = Arc::new(GuestMemory::from_ranges(&ranges).expect("memory for a small guest"));
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let transport =
            MmioTransport::new(device, Arc::clone(&memory), interrupt).expect("the device has valid queues");
        let rings = (0..transport.queue_count() as u64).map(Self::usual_rings).collect();
        Self { transport, memory, rings }
    }

    fn usual_rings(queue: u64) -> [u64; 3] {
        let base = RINGS * (queue + 1);
        [base, base + 0x4000, base + 0x8000]
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Sets the device up as a good driver does, with all features but those in `refused`.
    fn bring_up(&mut self, refused: u64) {
        for status in [0, 1, 3] {
            self.set(STATUS, status);
        }
        for half in 0..2 {
            self.set(DEVICE_FEATURES_SEL, half);
            let offered = self.get(DEVICE_FEATURES);
            self.set(DRIVER_FEATURES_SEL, half);
            let refused = if half == 0 { refused as u32 } else { 0 };
            self.set(DRIVER_FEATURES, offered & !refused);
        }
        self.set(STATUS, 11);
        for queue in 0..self.rings.len() {
            self.set(QUEUE_SEL, u32::try_from(queue).unwrap_or(0));
            let size = self.get(QUEUE_NUM_MAX);
            let rings = Self::usual_rings(queue as u64);
            self.set_up(queue, size, rings);
        }
        self.set(STATUS, 15);
    }

    fn set_up(&mut self, queue: usize, size: u32, rings: [u64; 3]) {
        self.set(QUEUE_SEL, u32::try_from(queue).unwrap_or(0));
        self.set(QUEUE_NUM, size);
        for (offset, address) in QUEUE_ADDRESSES.into_iter().zip(rings) {
            self.set(offset, address as u32);
            self.set(offset + 4, (address >> 32) as u32);
        }
        // A good driver clears the indices. Addresses outside of memory are ignored.
        for ring in &rings[1..] {
            let _ = self.memory.write_obj(0_u16, GuestAddress(ring.wrapping_add(2)));
        }
        self.set(QUEUE_READY, 1);
        if let Some(known) = self.rings.get_mut(queue) {
            *known = rings;
        }
    }

    /// Executes the input. `host` acts on the host's side of the device, if it has one.
    pub(crate) fn run(mut self, mut input: Input<'_>, mut host: impl FnMut(u8, &mut Input<'_>)) {
        self.bring_up(0);
        for _ in 0..STEPS {
            if self.step(&mut input, &mut host).is_none() {
                break;
            }
        }
        self.come_to_rest();
        // The device can be saved and restored in this state, and set up again.
        let state = self.transport.save();
        let _ = self.transport.restore(&state);
        self.bring_up(0);
        assert!(self.transport.is_live(), "the device refuses a good driver: {:?}", self.transport.last_failure());
        self.come_to_rest();
    }

    fn step(&mut self, input: &mut Input<'_>, host: &mut impl FnMut(u8, &mut Input<'_>)) -> Option<()> {
        let operation = input.byte()?;
        let queue = usize::from(operation >> 4) % self.rings.len();
        let rings = self.rings[queue];
        match operation & 15 {
            0..=3 => {
                let index = u64::from(input.byte()? % 64);
                let [address, length] = [address(input)?, length(input)?.into()];
                let control = input.byte()?;
                let flags = if control & 0x80 == 0 { u16::from(control & 3) } else { input.half()? };
                let next = if control & 0x40 == 0 { (index as u16 + 1) % 64 } else { input.half()? };
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&address.to_le_bytes());
                bytes[8..12].copy_from_slice(&(length as u32).to_le_bytes());
                bytes[12..14].copy_from_slice(&flags.to_le_bytes());
                bytes[14..].copy_from_slice(&next.to_le_bytes());
                self.put(rings[0].wrapping_add(16 * index), &bytes);
            }
            4 | 5 => {
                let head = input.byte()?;
                let head = if head < 0xf0 { u16::from(head % 64) } else { input.half()? };
                let index: u16 = self.memory.read_obj(GuestAddress(rings[1].wrapping_add(2))).unwrap_or(0);
                self.set(QUEUE_SEL, u32::try_from(queue).unwrap_or(0));
                let size = u64::from(self.get(QUEUE_NUM_MAX).max(1));
                self.put(rings[1].wrapping_add(4 + 2 * (u64::from(index) % size)), &head.to_le_bytes());
                self.put(rings[1].wrapping_add(2), &index.wrapping_add(1).to_le_bytes());
            }
            6 => {
                let index = input.half()?;
                self.put(rings[1].wrapping_add(2), &index.to_le_bytes());
            }
            7 | 8 => {
                let at = address(input)?;
                let count = usize::from(input.byte()? % 64);
                self.put(at, input.bytes(count));
            }
            9 | 10 => self.transport.queue_notified(queue),
            11 => {
                let (offset, width) = (u64::from(input.half()? % 0x1004), usize::from(input.byte()? % 9));
                let value = input.double()?.to_le_bytes();
                self.transport.write(offset, &value[..width]);
                self.transport.read(offset, &mut [0; 8][..width]);
            }
            12 => {
                let refused = input.byte()?;
                self.bring_up(u64::from(refused) << 24);
            }
            13 => {
                self.set(STATUS, 0);
                for status in [1, 3] {
                    self.set(STATUS, status);
                }
                self.set(DRIVER_FEATURES_SEL, 1);
                self.set(DRIVER_FEATURES, 1);
                self.set(STATUS, 11);
                let size = u32::from(input.byte()?);
                let rings = [address(input)?, address(input)?, address(input)?];
                self.set_up(queue, size, rings);
                self.set(STATUS, 15);
            }
            14 => host(input.byte()?, input),
            _ => self.turns(usize::from(input.byte()? % 8)),
        }
        Some(())
    }

    /// Writes to guest memory. An address outside of memory is ignored.
    fn put(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    fn is_ready(&self) -> bool {
        let Some(fd) = self.transport.host_fd() else { return false };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Runs the event loop for at most `count` turns, or until the device wants no more.
    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            if !self.is_ready() {
                return;
            }
            self.transport.host_ready();
        }
    }

    fn come_to_rest(&mut self) {
        self.turns(TURNS);
        assert!(!self.is_ready(), "the device spins");
    }
}

/// Returns an address that is mostly in memory.
fn address(input: &mut Input<'_>) -> Option<u64> {
    let kind = input.byte()?;
    Some(match kind {
        0..160 => BUFFERS + u64::from(kind) * 64,
        160..180 => HIGH_START + u64::from(input.half()?) * 16,
        180..200 => RINGS + u64::from(input.half()?) * 4,
        200..210 => LOW_END - u64::from(input.byte()?),
        210..220 => HIGH_END - u64::from(input.byte()?),
        220..230 => HIGH_START - u64::from(input.byte()?),
        230..240 => u64::MAX - u64::from(input.byte()?),
        _ => input.double()?,
    })
}

/// Returns a length that is mostly valid for a request.
fn length(input: &mut Input<'_>) -> Option<u32> {
    let kind = input.byte()?;
    Some(match kind {
        0..8 => [1, 16, 17, 44, 256, 512, 513, 4096][usize::from(kind)],
        8..200 => u32::from(kind),
        200..240 => u32::from(input.half()?),
        240 => 0,
        241 => u32::MAX,
        _ => input.word()?,
    })
}
