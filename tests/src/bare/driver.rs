//! The steps of a virtio driver (virtio 1.2, 3.1.1 and 4.2.3) as parts of a script, and virtqueues
//! as initial content of the guest's memory. Nothing here enforces a rule of virtio: a test may
//! write any value, valid or not.

use sandboxvm_bare_guest::{Image, Script, Width, layout};

/// Address of the first device's window. The others follow.
pub const FIRST_WINDOW: u64 = 0xd000_0000;
/// Size of a window, and so the distance of the windows.
pub const WINDOW_SIZE: u64 = 0x1000;
/// Interrupt line of the first device; the next ones follow.
pub const FIRST_LINE: u32 = 5;

/// Register offsets (virtio 1.2, 4.2.2).
pub mod register {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const MAGIC: u64 = 0x00;
    pub const DEVICE_ID: u64 = 0x08;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_AVAILABLE: u64 = 0x90;
    pub const QUEUE_USED: u64 = 0xa0;
    pub const CONFIG: u64 = 0x100;
}

/// VIRTIO_F_VERSION_1, which every device of the VMM requires.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_RING_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;

/// DEVICE_NEEDS_RESET.
pub const NEEDS_RESET: u32 = 0x40;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK.
pub const LIVE: u32 = 0x0f;

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// One device's register window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window(pub u64);

impl Window {
    /// Returns the window of device `index`.
    #[must_use]
    pub fn of(index: u64) -> Self {
        Self(FIRST_WINDOW + index * WINDOW_SIZE)
    }

    /// Resets the device.
    pub fn reset(self, script: &mut Script) {
        script.set(self.0 + register::STATUS, 0);
    }

    /// Goes from a reset to FEATURES_OK.
    pub fn negotiate(self, script: &mut Script, features: u64) {
        let status = self.0 + register::STATUS;
        script.set(status, 0).set(status, 1).set(status, 3);
        for (half, value) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            script.set(self.0 + register::DRIVER_FEATURES_SEL, half);
            script.write(Width::Word, self.0 + register::DRIVER_FEATURES, value);
        }
        script.set(status, 11).expect(Width::Word, status, 11);
    }

    /// Tells the device the addresses of a queue.
    pub fn set_up_queue(self, script: &mut Script, queue: u32, rings: &Rings) {
        script.set(self.0 + register::QUEUE_SEL, queue).set(self.0 + register::QUEUE_NUM, rings.size);
        let places = [
            (register::QUEUE_DESC, rings.descriptors),
            (register::QUEUE_AVAILABLE, rings.available),
            (register::QUEUE_USED, rings.used),
        ];
        for (offset, address) in places {
            script.write(Width::Word, self.0 + offset, address & 0xffff_ffff);
            script.write(Width::Word, self.0 + offset + 4, address >> 32);
        }
        script.set(self.0 + register::QUEUE_READY, 1);
    }

    /// Sets DRIVER_OK.
    pub fn go_live(self, script: &mut Script) {
        script.set(self.0 + register::STATUS, LIVE);
    }

    /// Gives up unless the device works.
    pub fn expect_live(self, script: &mut Script) {
        script.expect(Width::Word, self.0 + register::STATUS, LIVE.into());
    }

    /// Waits until the device has stopped because of an error of its driver.
    pub fn wait_for_stop(self, script: &mut Script) {
        script.wait(self.0 + register::STATUS, NEEDS_RESET, NEEDS_RESET);
    }

    /// Notifies a queue.
    pub fn notify(self, script: &mut Script, queue: u32) {
        script.set(self.0 + register::QUEUE_NOTIFY, queue);
    }
}

/// Routes interrupts of `line` to the first vCPU, which counts them while it has interrupts
/// enabled.
pub fn route_interrupt(script: &mut Script, line: u32) {
    const SPURIOUS: u64 = layout::LOCAL_APIC + 0xf0;
    const ENABLED: u32 = 0x1ff;
    const ENTRIES: u32 = 0x10;
    let vector = u32::from(layout::FIRST_VECTOR) + line;
    // The PIC would deliver the same line at the vector of an exception.
    script.out(0x21, 0xff).out(0xa1, 0xff);
    script.set(SPURIOUS, ENABLED);
    for (index, value) in [(ENTRIES + 2 * line + 1, 0), (ENTRIES + 2 * line, vector)] {
        script.set(layout::IOAPIC, index).set(layout::IOAPIC + 0x10, value);
    }
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// A combination of [`NEXT`], [`WRITE`] and [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl Descriptor {
    /// Returns the encoding in memory.
    #[must_use]
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A buffer of a valid chain: address and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The device reads the buffer.
    Readable(u64, u32),
    /// The device writes the buffer.
    Writable(u64, u32),
}

/// The addresses of a virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// Number of descriptors.
    pub size: u32,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub available: u64,
    /// Address of the used ring.
    pub used: u64,
}

impl Rings {
    /// Size of the memory that [`Rings::at`] uses.
    pub const BYTES: u64 = 0x3000;

    /// Returns a queue from `base` on, with one page for each of its three parts.
    #[must_use]
    pub fn at(base: u64, size: u32) -> Self {
        Self { size, descriptors: base, available: base + 0x1000, used: base + 0x2000 }
    }

    /// Sets the initial content of descriptor `index`.
    pub fn put(&self, image: &mut Image, index: u16, descriptor: Descriptor) {
        image.put(self.descriptors + 16 * u64::from(index), &descriptor.encode());
    }

    /// Describes `parts` in the descriptors `first`, `first + 1` and so on.
    pub fn put_chain(&self, image: &mut Image, first: u16, parts: &[Part]) {
        let last = parts.len().saturating_sub(1);
        for (position, (index, part)) in (first..).zip(parts).enumerate() {
            let more = if position < last { NEXT } else { 0 };
            let (address, length, flags) = match *part {
                Part::Readable(address, length) => (address, length, more),
                Part::Writable(address, length) => (address, length, more | WRITE),
            };
            self.put(image, index, Descriptor { address, length, flags, next: index.wrapping_add(1) });
        }
    }

    /// Sets the initial heads of the available ring. None of them is published.
    pub fn put_heads(&self, image: &mut Image, heads: &[u16]) {
        let bytes: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
        image.put(self.available + 4, &bytes);
    }

    /// Sets the available index, which passes all heads before it to the device.
    pub fn publish(&self, script: &mut Script, index: u16) {
        script.write(Width::Half, self.available + 2, index.into());
    }

    /// Waits until the device has returned `count` chains in total.
    pub fn wait_used(&self, script: &mut Script, count: u16) {
        script.wait_for_index(self.used, count, false);
    }

    /// Gives up unless the device has returned exactly this many chains.
    pub fn expect_used(&self, script: &mut Script, count: u16) {
        script.expect(Width::Half, self.used + 2, count.into());
    }
}
