//! virtio over MMIO, version 2 (virtio 1.2, 4.2): one device's register window, its queues and its interrupt.
//!
//! The transport is what the guest talks to and what a snapshot saves; the device behind it ([`VirtioDevice`]) borrows
//! the queues for the length of one call. It may never reach guest memory but through the queues the driver set up,
//! and never calls a device whose driver has not finished set-up, or that failed. Callers: the MMIO bus for register
//! accesses, the event loop for queue notifications (an ioeventfd at offset 0x50) and for the device's own descriptor.
//! They hold one lock around every call, so a reset never comes in the middle of a request.
//!
//! The driver's life with a device, by its writes to Status:
//!
//! ```text
//!  0 --ACKNOWLEDGE--> 1 --DRIVER--> 3 --FEATURES_OK--> 11 --DRIVER_OK--> 15  live
//!                                   |  (features)      |  (queues)       |
//!                                   |                  |                 +-- DeviceError --> 15|64  DEVICE_NEEDS_RESET
//!                                   |                  +-- a queue that cannot be ---------> 15|64
//!                                   +-- a feature not offered, or not VERSION_1: FEATURES_OK stays clear
//!  from anywhere: --0--> 0   --FAILED--> |128, the device is called no more
//! ```
//!
//! A write that means nothing where it comes (wrong state, no such register, not 32 bits, a status bit taken back) is
//! ignored, and such a read gives zero: the guest can hurt its own device only.

mod state;
#[cfg(test)]
mod tests;

pub use state::{QueueRegisters, QueueState, RestoreError, TransportState};

use super::device::{DeviceContext, DeviceError, DeviceType, Interrupt, VirtioDevice};
use crate::memory::GuestMemory;
use std::{os::fd::BorrowedFd, sync::Arc};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
        VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
        VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET, VIRTIO_F_VERSION_1,
    },
    virtio_mmio::{
        VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
        VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
        VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
        VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
        VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
        VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH,
        VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
    },
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use virtio_queue::{Queue, QueueT};

/// Bytes of the register window, configuration space included.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Where in the window a driver writes the index of a queue to notify; what an ioeventfd (4 bytes, datamatch the
/// index) listens on.
pub const QUEUE_NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Register layout of virtio 1.0 and later.
const LAYOUT_VERSION: u32 = 2;
/// "SBVM"; the specification leaves the value free.
const VENDOR: u32 = 0x4d56_4253;

/// The transport cannot be made for this device.
#[derive(Debug, thiserror::Error)]
#[error("a {device:?} device asks for a queue of {limit}: queue sizes are powers of two up to 32768")]
pub struct QueueLimitError {
    device: DeviceType,
    limit: u16,
}

/// One virtio-mmio device.
#[derive(Debug)]
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    interrupt: Interrupt,
    /// As the driver describes them; taken over into `queues` at DRIVER_OK.
    registers: Vec<QueueRegisters>,
    /// What the device works with.
    queues: Vec<Queue>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    failures: u64,
    last_failure: Option<String>,
}

impl MmioTransport {
    /// A device in its reset state.
    ///
    /// # Errors
    /// When the device names a queue limit that is not a power of two.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        interrupt: Interrupt,
    ) -> Result<Self, QueueLimitError> {
        let queue =
            |&limit: &u16| Queue::new(limit).map_err(|_| QueueLimitError { device: device.device_type(), limit });
        let queues = device.queue_limits().iter().map(queue).collect::<Result<Vec<_>, _>>()?;
        let registers = vec![QueueRegisters::default(); queues.len()];
        Ok(Self {
            device,
            memory,
            interrupt,
            registers,
            queues,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            failures: 0,
            last_failure: None,
        })
    }

    /// Its device's type.
    #[must_use]
    pub fn device_type(&self) -> DeviceType {
        self.device.device_type()
    }

    /// Number of queues; an ioeventfd each.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Its interrupt; [`Interrupt::line`] is the eventfd to register as irqfd.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Times the device stopped with an error since the transport was made.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The newest of those errors. Text that a guest may have provoked, but not written.
    #[must_use]
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    /// The driver finished set-up, and neither side gave up.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// The guest reads `into.len()` bytes at `offset` in the window.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        if let Some(config) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            if offset < WINDOW_SIZE {
                self.device.read_config(config, into);
            }
        } else if let Ok(into) = <&mut [u8; 4]>::try_from(into) {
            *into = self.read_register(offset).to_le_bytes();
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        // Below CONFIG, so it fits.
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => LAYOUT_VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type().number(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered_features(), self.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected_queue().map_or(0, |index| self.queues[index].max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.selected_queue().map_or(0, |index| self.registers[index].ready.into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => self.status,
            // All ones: there is no such shared memory region (4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.config_generation(),
            _ => 0,
        }
    }

    /// The guest writes `data` at `offset` in the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has a configuration field for the driver to write.
        if let Ok(data) = <[u8; 4]>::try_from(data)
            && let Ok(offset) = u32::try_from(offset)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Ok(index) = usize::try_from(value) {
                    self.queue_notified(index);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let Some(index) = self.selected_queue() else { return };
        let registers = &mut self.registers[index];
        if offset == VIRTIO_MMIO_QUEUE_READY && value == 0 {
            // The one change a live queue takes: the driver stops using it (4.2.2.2), until the next reset.
            registers.ready = false;
            self.queues[index].set_ready(false);
            return;
        }
        if self.status != ACKNOWLEDGE | DRIVER | FEATURES_OK || registers.ready {
            return;
        }
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => registers.size = value,
            VIRTIO_MMIO_QUEUE_READY => registers.ready = value == 1,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut registers.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut registers.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut registers.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut registers.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut registers.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut registers.used, value),
            _ => {}
        }
    }

    fn selected_queue(&self) -> Option<usize> {
        usize::try_from(self.queue_sel).ok().filter(|&index| index < self.queues.len())
    }

    fn offered_features(&self) -> u64 {
        self.device.offered_features() | 1 << VIRTIO_F_VERSION_1
    }

    fn features_agree(&self, features: u64) -> bool {
        features & !self.offered_features() == 0 && features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn accept_features(&mut self, value: u32) {
        if self.status != ACKNOWLEDGE | DRIVER {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            // There are no features beyond 64 to accept; FEATURES_OK would be refused for them.
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let driver_bits = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
        if self.status & driver_bits & !value != 0 {
            return;
        }
        for (bit, after) in [(ACKNOWLEDGE, 0), (DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)] {
            if value & bit == 0 || self.status & bit != 0 || self.status & (FAILED | NEEDS_RESET) != 0 {
                continue;
            }
            if self.status & after != after || bit == FEATURES_OK && !self.features_agree(self.driver_features) {
                return;
            }
            self.status |= bit;
            if bit == DRIVER_OK {
                self.activate();
            }
        }
        self.status |= value & FAILED;
    }

    fn activate(&mut self) {
        match self.take_over_queues() {
            Ok(()) => self.with_device(|device, context| device.activate(context)),
            Err(error) => self.fail(&error),
        }
    }

    fn take_over_queues(&mut self) -> Result<(), DeviceError> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for (index, (queue, registers)) in self.queues.iter_mut().zip(&self.registers).enumerate() {
            queue.reset();
            if registers.ready {
                registers
                    .apply(queue, event_idx, &self.memory)
                    .map_err(|what| DeviceError::Queue { queue: index, what })?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.registers.fill(QueueRegisters::default());
        self.queues.iter_mut().for_each(QueueT::reset);
        self.interrupt.set_status(0);
        self.device.reset();
    }

    /// The driver notified queue `index` through its ioeventfd. A queue that does not exist or is not ready is ignored.
    pub fn queue_notified(&mut self, index: usize) {
        if self.queues.get(index).is_some_and(QueueT::ready) {
            self.with_device(|device, context| device.queue_notified(index, context));
        }
    }

    /// Looks at every queue as if the driver had notified it: after a restore, when a notification may have been lost
    /// with the machine it was sent to.
    pub fn notify_all(&mut self) {
        for index in 0..self.queues.len() {
            self.queue_notified(index);
        }
    }

    /// A descriptor to watch for reading, level-triggered; then [`MmioTransport::host_ready`] is wanted.
    #[must_use]
    pub fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.host_fd()
    }

    /// [`MmioTransport::host_fd`] is readable.
    pub fn host_ready(&mut self) {
        if self.is_live() {
            self.with_device(|device, context| device.host_ready(Some(context)));
        } else if let Err(error) = self.device.host_ready(None) {
            self.fail(&error);
        }
    }

    /// Calls a live device, and stops it when it fails.
    fn with_device(
        &mut self,
        call: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceContext<'_>) -> Result<(), DeviceError>,
    ) {
        if !self.is_live() {
            return;
        }
        let mut context = DeviceContext {
            memory: &self.memory,
            queues: &mut self.queues,
            interrupt: &self.interrupt,
            features: self.driver_features,
        };
        if let Err(error) = call(&mut *self.device, &mut context) {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &DeviceError) {
        self.failures += 1;
        self.last_failure = Some(error.to_string());
        self.status |= NEEDS_RESET;
        // A driver that is not live yet finds out by reading Status (2.1.2).
        if self.status & DRIVER_OK != 0 {
            self.interrupt.signal_config();
        }
    }
}

fn half(value: u64, select: u32) -> u32 {
    let [low, high] = halves(value);
    match select {
        0 => low,
        1 => high,
        _ => 0,
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}
