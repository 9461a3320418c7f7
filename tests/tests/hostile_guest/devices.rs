//! The devices of a machine of the harness, and what each takes for a good request. Whoever adds a device to the VMM
//! adds it here: [`crate::first_light`] fails until then.

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

/// A device.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// For people.
    pub name: &'static str,
    /// Its position, which gives its window and interrupt.
    pub index: u64,
    /// virtio device type.
    pub kind: u32,
    /// It offers VIRTIO_RING_F_EVENT_IDX.
    pub event_idx: bool,
    /// The largest size of each of its queues.
    pub queues: &'static [u32],
    /// The queues on which the driver's chains are looked at as soon as they come, and how.
    pub served: &'static [Served],
}

/// A queue whose chains the device takes at once.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Which.
    pub queue: u32,
    /// The chains of a good driver point to what the device reads, at least to begin with.
    pub readable: bool,
    /// Descriptors to set the queue up with. Small where the device keeps returned buffers until it has some.
    pub size: u32,
    /// What the driver names there is given away: not for all of the guest's own memory.
    pub gives_away: bool,
    /// Makes a good request with 4 KiB of memory from an address on.
    pub good: fn(&mut Image, u64) -> Vec<Part>,
}

/// All of them, in the order of their windows.
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
    ]
}

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

/// Inflating and deflating alike: handed back unread.
const INFLATE_QUEUE: Served =
    Served { queue: 0, readable: true, size: 16, gives_away: false, good: |_, at| vec![Part::Readable(at, 64)] };

const REPORTING_QUEUE: Served =
    Served { queue: 2, readable: false, size: 32, gives_away: true, good: |_, at| vec![Part::Writable(at, 4096)] };
