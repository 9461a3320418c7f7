//! The devices of a machine of the harness, and what each accepts as a valid request. A new device
//! of the VMM has to be added here: [`crate::first_light`] fails until then.

use sandboxvm_bare_guest::Image;
use sandboxvm_tests::bare::{
    driver::Part,
    socket_driver::{HEADER, Packet, operation},
};

/// Position of the read-only disk.
pub const IMAGE: u64 = 0;
/// Position of the writable disk.
pub const DISK: u64 = 1;
/// Position of the entropy device.
pub const ENTROPY: u64 = 2;
/// Position of the vsock device.
pub const SOCKET: u64 = 3;
/// Position of the balloon.
pub const BALLOON: u64 = 4;

/// Position of the network card, which has no link unless a test attaches one.
pub const CARD: u64 = 5;

/// A device.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// Its name in messages.
    pub name: &'static str,
    /// Its position, which gives its window and interrupt.
    pub index: u64,
    /// virtio device type.
    pub kind: u32,
    /// Whether it offers VIRTIO_RING_F_EVENT_IDX.
    pub event_idx: bool,
    /// The maximum size of each of its queues.
    pub queues: &'static [u32],
    /// The queues whose chains the device processes as soon as the driver offers them.
    pub served: &'static [Served],
}

/// A queue whose chains the device processes immediately.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Its index.
    pub queue: u32,
    /// Whether the chains of a good driver begin with buffers that the device reads.
    pub readable: bool,
    /// Number of descriptors to set the queue up with. Small if the device returns buffers only in
    /// groups.
    pub size: u32,
    /// Whether the guest gives the memory away that its chains name. So they may not name all of
    /// the guest's memory.
    pub gives_away: bool,
    /// Makes a valid request that uses 4 KiB of memory at an address.
    pub good: fn(&mut Image, u64) -> Vec<Part>,
}

/// Returns all devices, in the order of their windows.
pub fn all() -> &'static [Device] {
    const BLOCK: u32 = 2;
    &[
        Device {
            name: "read-only disk",
            index: IMAGE,
            kind: BLOCK,
            event_idx: true,
            queues: &[64],
            served: &[BLOCK_QUEUE],
        },
        Device {
            name: "writable disk",
            index: DISK,
            kind: BLOCK,
            event_idx: true,
            queues: &[64],
            served: &[BLOCK_QUEUE],
        },
        Device { name: "entropy", index: ENTROPY, kind: 4, event_idx: true, queues: &[8], served: &[ENTROPY_QUEUE] },
        Device {
            name: "vsock",
            index: SOCKET,
            kind: 19,
            event_idx: true,
            queues: &[64, 64, 4],
            served: &[TRANSMIT_QUEUE],
        },
        Device {
            name: "balloon",
            index: BALLOON,
            kind: 5,
            event_idx: false,
            queues: &[16, 16, 32],
            served: &[Served { queue: 0, ..INFLATE_QUEUE }, Served { queue: 1, ..INFLATE_QUEUE }, REPORTING_QUEUE],
        },
        Device {
            name: "network card",
            index: CARD,
            kind: 1,
            event_idx: true,
            queues: &[128, 128],
            served: &[FRAME_QUEUE],
        },
    ]
}

/// The device's header, and a frame. Without a link it is dropped, and its buffer returned.
const FRAME_QUEUE: Served =
    Served { queue: 1, readable: true, size: 64, gives_away: false, good: |_, at| vec![Part::Readable(at, 12 + 60)] };

const BLOCK_QUEUE: Served = Served {
    queue: 0,
    readable: true,
    size: 64,
    gives_away: false,
    good: |image, at| {
        // VIRTIO_BLK_T_IN of sector 0.
        image.put(at, &[0; 16]);
        vec![Part::Readable(at, 16), Part::Writable(at + 64, 512), Part::Writable(at + 1024, 1)]
    },
};

const ENTROPY_QUEUE: Served =
    Served { queue: 0, readable: false, size: 8, gives_away: false, good: |_, at| vec![Part::Writable(at, 64)] };

const TRANSMIT_QUEUE: Served = Served {
    queue: 1,
    readable: true,
    size: 4,
    gives_away: false,
    good: |image, at| {
        image.put(at, &Packet::new(1, operation::RESET).encode());
        vec![Part::Readable(at, HEADER)]
    },
};

/// The device returns the chains of the queues for inflating and deflating unread.
const INFLATE_QUEUE: Served =
    Served { queue: 0, readable: true, size: 16, gives_away: false, good: |_, at| vec![Part::Readable(at, 64)] };

const REPORTING_QUEUE: Served =
    Served { queue: 2, readable: false, size: 32, gives_away: true, good: |_, at| vec![Part::Writable(at, 4096)] };
