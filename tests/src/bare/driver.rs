//! The steps of a virtio driver (virtio 1.2, 3.1.1 and 4.2.3) as parts of a script. Nothing here
//! enforces a rule of virtio: a test may write any value, valid or not.

pub use sandboxvm_bare_guest::virtqueue::{Descriptor, INDIRECT, NEXT, Part, Rings, WRITE};
use sandboxvm_bare_guest::{Script, Width, layout};

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
