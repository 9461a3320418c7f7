//! The lower half of the played guest: memory, virtqueues and interrupts. It kicks only when the device asked for it and
//! looks at a used ring only when it was interrupted, so that a notification lost on either side shows as a hang.

use super::super::{
    device::{EVENT, RECEIVE, TRANSMIT, VsockDevice, VsockOptions},
    limits::Limits,
    packet::{HEADER_SIZE, Header},
};
use super::Footprint;
use crate::devices::virtio::device::{DeviceContext, DeviceError, GuestMemory, Interrupt, VirtioDevice};
use rustix::event::{PollFd, PollFlags, poll};
use sandboxvm_protocol::{ids::GuestCid, machine::OutputRate};
use std::{
    collections::BTreeMap,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::atomic::Ordering,
    time::Duration,
};
use tempfile::TempDir;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(super) const MEMORY: usize = 16 << 20;
const RX_BUFFERS: u64 = 1 << 20;
const TX_BUFFERS: u64 = 8 << 20;
/// Room for a header and the largest payload.
const BUFFER_STRIDE: u64 = 0x1_1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// One piece of a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) writable: bool,
}

/// The driver's side of one virtqueue.
#[derive(Debug)]
pub(super) struct Ring {
    base: u64,
    pub(super) size: u16,
    free: Vec<u16>,
    chains: BTreeMap<u16, (Vec<u16>, Vec<Piece>)>,
    available: u16,
    kicked: u16,
    used: u16,
    event_idx: bool,
}

impl Ring {
    fn new(index: usize, size: u16, event_idx: bool) -> Self {
        let base = 0x1_0000 * (index as u64 + 1);
        let free = (0..size).rev().collect();
        Self { base, size, free, chains: BTreeMap::new(), available: 0, kicked: 0, used: 0, event_idx }
    }

    pub(super) fn descriptors(&self) -> u64 {
        self.base
    }

    pub(super) fn avail(&self) -> u64 {
        self.base + 0x2000
    }

    pub(super) fn used_ring(&self) -> u64 {
        self.base + 0x4000
    }

    fn load(memory: &GuestMemory, address: u64) -> u16 {
        memory.load(GuestAddress(address), Ordering::SeqCst).unwrap()
    }

    fn store(memory: &GuestMemory, address: u64, value: u16) {
        memory.store(value, GuestAddress(address), Ordering::SeqCst).unwrap();
    }

    pub(super) fn write_descriptor(&self, memory: &GuestMemory, index: u16, piece: Piece, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index);
        memory.write_obj(piece.address, GuestAddress(at)).unwrap();
        memory.write_obj(piece.length, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags | if piece.writable { WRITE } else { 0 }, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain available; false when there are not enough free descriptors.
    pub(super) fn add(&mut self, memory: &GuestMemory, pieces: &[Piece]) -> bool {
        if self.free.len() < pieces.len() {
            return false;
        }
        let indices = self.free.split_off(self.free.len() - pieces.len());
        for (at, (index, piece)) in indices.iter().zip(pieces).enumerate() {
            let next = indices.get(at + 1).copied();
            self.write_descriptor(memory, *index, *piece, next.map_or(0, |_| NEXT), next.unwrap_or(0));
        }
        self.chains.insert(indices[0], (indices.clone(), pieces.to_vec()));
        self.publish(memory, indices[0]);
        true
    }

    /// Puts `head` into the available ring as it is.
    pub(super) fn publish(&mut self, memory: &GuestMemory, head: u16) {
        Self::store(memory, self.avail() + 4 + 2 * u64::from(self.available % self.size), head);
        self.available = self.available.wrapping_add(1);
        Self::store(memory, self.avail() + 2, self.available);
    }

    /// Whether the device wants to hear of what was added since this was last asked.
    fn kick_wanted(&mut self, memory: &GuestMemory) -> bool {
        let (old, new) = (std::mem::replace(&mut self.kicked, self.available), self.available);
        if old == new {
            return false;
        }
        if !self.event_idx {
            return Self::load(memory, self.used_ring()) & 1 == 0;
        }
        let event = Self::load(memory, self.used_ring() + 4 + 8 * u64::from(self.size));
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Takes a used chain: its pieces and how much was written.
    fn take_used(&mut self, memory: &GuestMemory) -> Option<(Vec<Piece>, u32)> {
        if Self::load(memory, self.used_ring() + 2) == self.used {
            // As virtqueue_enable_cb: interrupt at the next one.
            Self::store(memory, self.avail() + 4 + 2 * u64::from(self.size), self.used);
            if Self::load(memory, self.used_ring() + 2) == self.used {
                return None;
            }
        }
        let at = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        let head: u32 = memory.read_obj(GuestAddress(at)).unwrap();
        let written: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        let (indices, pieces) =
            self.chains.remove(&u16::try_from(head).unwrap()).expect("the device returned a chain it did not have");
        self.free.extend(indices);
        Some((pieces, written))
    }

    /// Chains the device has.
    pub(super) fn outstanding(&self) -> usize {
        self.chains.len()
    }
}

/// The machine.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) memory: GuestMemory,
    pub(super) device: VsockDevice,
    pub(super) queues: Vec<Queue>,
    interrupt: Interrupt,
    line: EventFd,
    pub(super) rings: Vec<Ring>,
    pub(super) event_idx: bool,
    pub(super) rx_size: u32,
    pub(super) limits: Limits,
    /// Kicks the device asked for, per queue, and interrupts it sent.
    pub(super) kicks: [usize; 3],
    pub(super) interrupts: usize,
    directory: TempDir,
    tx_slot: u64,
}

/// How a guest is set up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    pub(super) limits: Limits,
    pub(super) event_idx: bool,
    /// Size of a receive buffer.
    pub(super) rx_size: u32,
    /// Most that the guest may send.
    pub(super) output_rate: Option<OutputRate>,
}

impl Setup {
    pub(super) fn options(&self) -> VsockOptions {
        let options = VsockOptions::unlimited(GuestCid::DEFAULT);
        if let Some(rate) = self.output_rate {
            options.output_limit.set(rate);
        }
        options
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self { limits: Limits::DEFAULT, event_idx: true, rx_size: 4096, output_rate: None }
    }
}

pub(super) fn listener(directory: &TempDir, name: &str) -> UnixListener {
    let listener = UnixListener::bind(directory.path().join(name)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

impl Guest {
    /// A device without a driver.
    pub(super) fn powered(setup: Setup) -> Self {
        let directory = TempDir::new().unwrap();
        let device =
            VsockDevice::with_limits(setup.options(), listener(&directory, "vsock.sock"), setup.limits).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Interrupt::new(line.try_clone().unwrap());
        let mut guest = Self {
            memory,
            queues: Vec::new(),
            interrupt,
            line,
            rings: Vec::new(),
            event_idx: setup.event_idx,
            rx_size: setup.rx_size,
            limits: setup.limits,
            kicks: [0; 3],
            interrupts: 0,
            directory,
            tx_slot: 0,
            device,
        };
        guest.forget_queues();
        guest
    }

    /// A device with a driver as Linux's: all receive and event buffers posted.
    pub(super) fn booted(setup: Setup) -> Self {
        let mut guest = Self::powered(setup);
        guest.activate();
        guest.fill();
        guest.kick();
        guest
    }

    pub(super) fn forget_queues(&mut self) {
        self.rings.clear();
        self.queues.clear();
        for (index, size) in self.device.queue_limits().iter().copied().enumerate() {
            let ring = Ring::new(index, size, self.event_idx);
            self.memory.write_slice(&[0; 0x6000], GuestAddress(ring.base)).unwrap();
            let mut queue = Queue::new(size).unwrap();
            queue.try_set_desc_table_address(GuestAddress(ring.descriptors())).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(ring.avail())).unwrap();
            queue.try_set_used_ring_address(GuestAddress(ring.used_ring())).unwrap();
            queue.set_event_idx(self.event_idx);
            queue.set_ready(true);
            assert!(queue.is_valid(&self.memory));
            self.rings.push(ring);
            self.queues.push(queue);
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("vsock.sock")
    }

    pub(super) fn directory(&self) -> &TempDir {
        &self.directory
    }

    /// A client that has not said anything.
    pub(super) fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    pub(super) fn footprint(&self) -> Footprint {
        self.device.footprint()
    }

    /// Calls the device as the transport would.
    pub(super) fn call<T>(&mut self, call: impl FnOnce(&mut VsockDevice, &mut DeviceContext<'_>) -> T) -> T {
        let features = if self.event_idx { 1 << VIRTIO_RING_F_EVENT_IDX } else { 0 };
        let mut context =
            DeviceContext { memory: &self.memory, queues: &mut self.queues, interrupt: &self.interrupt, features };
        call(&mut self.device, &mut context)
    }

    pub(super) fn activate(&mut self) {
        self.call(|device, context| device.activate(context)).unwrap();
    }

    /// Posts as many receive and event buffers as the queues take.
    pub(super) fn fill(&mut self) {
        while self.post_rx(self.rx_size) {}
        while self.post_event() {}
    }

    /// Posts one event buffer.
    pub(super) fn post_event(&mut self) -> bool {
        let ring = &mut self.rings[EVENT];
        let Some(slot) = ring.free.last().copied() else { return false };
        let address = 0x8_0000 + u64::from(slot) * 16;
        ring.add(&self.memory, &[Piece { address, length: 4, writable: true }])
    }

    /// Posts one receive buffer of `length` bytes.
    pub(super) fn post_rx(&mut self, length: u32) -> bool {
        let ring = &mut self.rings[RECEIVE];
        // A buffer's place is its first descriptor's, so no two that the device has share one.
        let Some(slot) = ring.free.last().copied() else { return false };
        let address = RX_BUFFERS + u64::from(slot) * BUFFER_STRIDE;
        ring.add(&self.memory, &[Piece { address, length, writable: true }])
    }

    /// Notifies the device of what was added, as far as it wants to know.
    pub(super) fn kick(&mut self) -> bool {
        self.try_kick().unwrap()
    }

    /// As [`Guest::kick`]; true when the device wanted to know.
    pub(super) fn try_kick(&mut self) -> Result<bool, DeviceError> {
        let mut any = false;
        for index in [RECEIVE, TRANSMIT, EVENT] {
            if self.rings[index].kick_wanted(&self.memory) {
                self.kicks[index] += 1;
                any = true;
                self.call(|device, context| device.queue_notified(index, context))?;
            }
        }
        Ok(any)
    }

    /// Sends a packet as Linux does: the header in one descriptor, the payload in another.
    pub(super) fn send(&mut self, header: &Header, payload: &[u8]) {
        let mut pieces = self.place(&header.encode(), payload);
        if payload.is_empty() {
            pieces.pop();
        }
        self.send_pieces(&pieces);
        self.kick();
    }

    /// Puts a packet's bytes into memory.
    pub(super) fn place(&mut self, header: &[u8], payload: &[u8]) -> Vec<Piece> {
        self.reclaim();
        let address = TX_BUFFERS + self.tx_slot % 64 * BUFFER_STRIDE;
        self.tx_slot += 1;
        self.memory.write_slice(header, GuestAddress(address)).unwrap();
        self.memory.write_slice(payload, GuestAddress(address + 0x800)).unwrap();
        vec![
            Piece { address, length: u32::try_from(header.len()).unwrap(), writable: false },
            Piece { address: address + 0x800, length: u32::try_from(payload.len()).unwrap(), writable: false },
        ]
    }

    /// Makes a transmit chain available without a kick.
    pub(super) fn send_pieces(&mut self, pieces: &[Piece]) {
        self.reclaim();
        assert!(self.rings[TRANSMIT].add(&self.memory, pieces), "the device keeps too many transmit buffers");
    }

    /// Takes returned transmit buffers back.
    pub(super) fn reclaim(&mut self) {
        while self.rings[TRANSMIT].take_used(&self.memory).is_some() {}
    }

    /// The packets that came, if there was an interrupt; their buffers are posted again.
    pub(super) fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let packets = self.packets_without_repost();
        for _ in 0..packets.len() {
            self.post_rx(self.rx_size);
        }
        packets
    }

    /// The packets that came, if there was an interrupt.
    pub(super) fn packets_without_repost(&mut self) -> Vec<(Header, Vec<u8>)> {
        if self.line.read().is_err() {
            return Vec::new();
        }
        self.interrupts += 1;
        self.reclaim();
        let mut packets = Vec::new();
        while let Some((pieces, written)) = self.rings[RECEIVE].take_used(&self.memory) {
            packets.push(self.parse(&pieces, written as usize));
        }
        packets
    }

    fn parse(&self, pieces: &[Piece], written: usize) -> (Header, Vec<u8>) {
        let mut bytes = vec![0; pieces.iter().map(|piece| piece.length as usize).sum()];
        let mut at = 0;
        for piece in pieces {
            let end = at + piece.length as usize;
            self.memory.read_slice(&mut bytes[at..end], GuestAddress(piece.address)).unwrap();
            at = end;
        }
        assert!(written >= HEADER_SIZE && written <= bytes.len(), "{written} bytes in a buffer of {}", bytes.len());
        let header = Header::decode(bytes[..HEADER_SIZE].try_into().unwrap());
        assert_eq!(header.length as usize, written - HEADER_SIZE);
        (header, bytes[HEADER_SIZE..written].to_vec())
    }

    /// Events that came; their buffers are not posted again.
    pub(super) fn events(&mut self) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        while let Some((pieces, written)) = self.rings[EVENT].take_used(&self.memory) {
            let mut event = vec![0; written as usize];
            self.memory.read_slice(&mut event, GuestAddress(pieces[0].address)).unwrap();
            events.push(event);
        }
        events
    }

    /// Whether the event loop would call the device.
    pub(super) fn host_wants(&self, timeout: Duration) -> bool {
        let fd = self.device.host_fd().unwrap();
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(timeout).unwrap();
        poll(&mut fds, Some(&timeout)).unwrap() > 0
    }

    /// Lets the event loop run until it has nothing to do.
    pub(super) fn serve(&mut self) {
        self.try_serve().unwrap();
    }

    pub(super) fn try_serve(&mut self) -> Result<(), DeviceError> {
        for _ in 0..10_000 {
            if !self.host_wants(Duration::ZERO) {
                return Ok(());
            }
            self.call(|device, context| device.host_ready(Some(context)))?;
        }
        panic!("the device keeps the event loop spinning");
    }
}
