//! An untrusted state file of a snapshot, and its restore: it is decoded, the states of devices are
//! applied to devices, and the memory map is applied to memory. KVM's own structures are not
//! applied: the kernel checks them.

use crate::input::{Input, file};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandboxvm_protocol::{
    ids::GuestCid,
    machine::MIB,
    network::{MacAddress, Mtu},
    vmm::NetConfig,
};
use sandboxvm_vmm::{
    devices::{
        console::{BoundedLog, MIN_LIMIT, SerialConsole},
        virtio::{
            balloon::BalloonDevice,
            block::BlockDevice,
            device::{Interrupt, VirtioDevice},
            net::NetDevice,
            rng::RngDevice,
            transport::{MmioTransport, TransportState},
            vsock::{VsockDevice, VsockOptions},
        },
    },
    memory::{GuestMemory, released::ReleasedPages},
    snapshot::{SnapshotState, format},
};
use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = MIB as usize;

/// Input: how it is used, then a state file, or (bit 0) a body that gets a valid header, or (bit 1)
/// the state of one device.
pub fn state_file(data: &[u8]) {
    let mut input = Input::new(data);
    let Some(how) = input.byte() else { return };
    if how & 2 == 2 {
        if let Ok(state) = postcard::from_bytes::<TransportState>(input.rest()) {
            restore_device(&state, how);
        }
        return;
    }
    let decoded = if how & 1 == 1 { format::decode(&with_header(input.rest())) } else { format::decode(input.rest()) };
    let Ok(state) = decoded else { return };
    // A state that was decoded can be encoded and decoded again.
    let again = format::encode(&state).expect("the state came from a file");
    let again = format::decode(&again).expect("the state was just encoded");
    assert_eq!(again.memory, state.memory);
    take_up(&state);
}

/// Returns the file with this body.
fn with_header(body: &[u8]) -> Vec<u8> {
    let mut bytes = format::MAGIC.to_vec();
    bytes.extend(format::VERSION.to_le_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(crc32fast::hash(body).to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn take_up(state: &SnapshotState) {
    let memory = memory();
    let page = Arc::new(file(&[7; 4096]));
    page.set_len(MEMORY as u64).expect("a file in memory");
    // Any files can be used here, as the map selects them and checks their length.
    let _ = state.memory.map_over(&memory, &[Arc::clone(&page), page]);
    let log = BoundedLog::new(file(b""), MIN_LIMIT).expect("the log is in memory");
    let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    if let Ok(console) = SerialConsole::restored(line, log, &state.machine.serial) {
        let _ = console.save();
    }
    for device in &state.machine.devices {
        restore_device(device, 0);
    }
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory for a small guest")
}

fn device_for(kind: u32, writable: bool) -> Box<dyn VirtioDevice> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    match kind {
        1 => {
            let config = NetConfig { mac: MacAddress::GUEST, mtu: Mtu::GUEST };
            Box::new(NetDevice::new(config).expect("an epoll set").0)
        }
        2 if writable => Box::new(BlockDevice::writable(file(&[0; 8192]), vec![file(b"")]).expect("the disk is valid")),
        2 => Box::new(BlockDevice::read_only(file(&[0; 8192])).expect("the disk is valid")),
        5 => {
            let released = Arc::new(ReleasedPages::none_of(MEMORY as u64 / 4096));
            Box::new(BalloonDevice::new(released).expect("an eventfd"))
        }
        19 => {
            let name = format!("sandboxvm-fuzz-state-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let address = SocketAddr::from_abstract_name(name).expect("a short name");
            let listener = UnixListener::bind_addr(&address).expect("the name is unique");
            Box::new(VsockDevice::new(VsockOptions::unlimited(GuestCid::DEFAULT), listener).expect("an epoll set"))
        }
        _ => Box::new(RngDevice::new().expect("a timer")),
    }
}

/// Applies a state to a device, and does what happens to a restored device before and just after
/// its machine runs.
fn restore_device(state: &TransportState, how: u8) {
    let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let device = device_for(state.device_type, how & 4 == 4);
    let mut transport = MmioTransport::new(device, Arc::new(memory()), interrupt).expect("the device has valid queues");
    if transport.restore(state).is_err() {
        return;
    }
    let saved = transport.save();
    transport.notify_all();
    assert!(come_to_rest(&mut transport), "a restored device spins");
    // The state can be saved and restored again.
    transport.restore(&saved).expect("a state that was restored once");
}

/// Serves the device's descriptor until it wants no more. The entropy device waits for its rate, so
/// some time passes.
fn come_to_rest(transport: &mut MmioTransport) -> bool {
    (0..10_000).any(|_| {
        transport.host_ready();
        let Some(fd) = transport.host_fd() else { return true };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        !poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    })
}

/// Returns the state of a device as a machine saves it, preceded by `how`: a start for a corpus.
#[must_use]
pub fn example(kind: u32) -> Vec<u8> {
    let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    let mut transport =
        MmioTransport::new(device_for(kind, true), Arc::new(memory()), interrupt).expect("the device has valid queues");
    for (offset, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11_u32)] {
        transport.write(offset, &value.to_le_bytes());
    }
    for queue in 0..u32::try_from(transport.queue_count()).expect("a few queues") {
        let base = 0x1_0000 * (queue + 1);
        for (offset, value) in
            [(0x30, queue), (0x38, 4), (0x80, base), (0x90, base + 0x1000), (0xa0, base + 0x2000), (0x44, 1)]
        {
            transport.write(offset, &value.to_le_bytes());
        }
    }
    transport.write(0x70, &15_u32.to_le_bytes());
    let mut bytes = vec![2 | 4];
    bytes.extend(postcard::to_stdvec(&transport.save()).expect("a small state"));
    bytes
}
