//! The contract between a virtio device model and the transport that shows it to the guest.
//!
//! The transport owns the virtqueues, the negotiated features and the interrupt; a device only borrows them for the
//! length of one call, so saving and restoring queues is one piece of code for all devices. All calls come from one
//! thread at a time (the event loop, or a vCPU thread inside a register access), under the transport's lock.

use crate::memory::GuestMemory;
use std::{
    fmt,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU32, Ordering},
};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// A virtio device type (virtio 1.2, section 5). Each device has its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceType {
    number: u32,
    name: &'static str,
}

impl DeviceType {
    /// Returns the type that the specification gives this number.
    #[must_use]
    pub const fn new(number: u32, name: &'static str) -> Self {
        Self { number, name }
    }

    /// Returns its number: what the driver reads, and snapshots keep.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.number
    }
}

impl fmt::Debug for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Why a device cannot continue. The transport answers by setting DEVICE_NEEDS_RESET (virtio 1.2, 2.1.1) and calling the
/// device no more until the driver resets it: a guest that breaks its queues loses the device and nothing else.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's queue cannot be followed.
    #[error("virtqueue {queue} is malformed: {what}")]
    Queue {
        /// Queue index.
        queue: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A saved state of the device cannot be taken over.
    #[error("saved device state is not usable: {0}")]
    SavedState(String),
    /// The host side of the device failed.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// What a device may use during one call.
#[derive(Debug)]
pub struct DeviceContext<'a> {
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// The device's queues, all configured and enabled or not as the driver left them.
    pub queues: &'a mut [Queue],
    /// To tell the driver about used buffers.
    pub interrupt: &'a Interrupt,
    /// Features the driver accepted.
    pub features: u64,
}

/// A virtio device model.
pub trait VirtioDevice: fmt::Debug + Send {
    /// Its type.
    fn device_type(&self) -> DeviceType;

    /// Largest size of each queue; the length is the number of queues.
    fn queue_limits(&self) -> &'static [u16];

    /// Features it offers. VIRTIO_F_VERSION_1 is added by the transport; VIRTIO_RING_F_EVENT_IDX is not, because it
    /// obliges the device to call `Queue::enable_notification` and `Queue::needs_notification` at the right places.
    /// The transport switches it on in the queues when it was offered and accepted. VIRTIO_RING_F_INDIRECT_DESC must
    /// not be offered: the descriptor chain layer refuses indirect tables.
    fn offered_features(&self) -> u64;

    /// Copies the configuration space from `offset` into `into`; bytes beyond the space read as zero.
    fn read_config(&self, offset: u64, into: &mut [u8]);

    /// The driver set DRIVER_OK: queues are valid from now on.
    ///
    /// # Errors
    /// When the device cannot work with what the driver negotiated.
    fn activate(&mut self, context: &mut DeviceContext<'_>) -> Result<(), DeviceError>;

    /// The driver notified queue `queue` (below the number of queues, checked by the transport).
    ///
    /// # Errors
    /// When the queue cannot be followed; the device is then stopped.
    fn queue_notified(&mut self, queue: usize, context: &mut DeviceContext<'_>) -> Result<(), DeviceError>;

    /// A descriptor that is readable when [`VirtioDevice::host_ready`] wants to be called (an epoll set of the
    /// device's own, where it has several); stays the same for the device's life.
    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// [`VirtioDevice::host_fd`] is readable. `context` is absent while the driver has not activated the device.
    ///
    /// # Errors
    /// As for [`VirtioDevice::queue_notified`].
    fn host_ready(&mut self, context: Option<&mut DeviceContext<'_>>) -> Result<(), DeviceError> {
        let _ = context;
        Ok(())
    }

    /// The driver reset the device: forget everything about the queues.
    fn reset(&mut self);

    /// What [`VirtioDevice::restore_state`] needs beside the transport's own state (features, queues). Empty for a
    /// device that keeps nothing between two calls.
    fn save_state(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over a state from [`VirtioDevice::save_state`], which may come from a damaged or forged file. Called on a
    /// fresh device instead of [`VirtioDevice::activate`]: when the driver had set DRIVER_OK, the next call may already
    /// be [`VirtioDevice::queue_notified`] or [`VirtioDevice::host_ready`] with a context.
    ///
    /// # Errors
    /// When `state` is not a state of this device.
    fn restore_state(&mut self, state: &[u8]) -> Result<(), DeviceError> {
        if state.is_empty() {
            return Ok(());
        }
        Err(DeviceError::SavedState(format!(
            "{} bytes for a {:?} device, which keeps no state",
            state.len(),
            self.device_type()
        )))
    }
}

/// Serves a read of `space`, a device's whole configuration space: bytes beyond it read as zero.
pub fn read_config_space(space: &[u8], offset: u64, into: &mut [u8]) {
    into.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else { return };
    let length = rest.len().min(into.len());
    into[..length].copy_from_slice(&rest[..length]);
}

/// The interrupt of one virtio-mmio device: InterruptStatus (virtio 1.2, 4.2.2) and the irqfd behind it.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    config_generation: AtomicU32,
    line: EventFd,
}

/// InterruptStatus bit 0: buffers were used.
const USED_BUFFER: u32 = 1;
/// InterruptStatus bit 1: the configuration changed.
const CONFIG_CHANGE: u32 = 2;

impl Interrupt {
    /// An interrupt that raises `line`, an eventfd registered with KVM as irqfd of the device's GSI.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self { status: AtomicU32::new(0), config_generation: AtomicU32::new(0), line }
    }

    /// Tells the driver that buffers were used.
    pub fn signal_used(&self) {
        self.signal(USED_BUFFER);
    }

    /// Tells the driver that the configuration or the device status changed.
    pub fn signal_config(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.signal(CONFIG_CHANGE);
    }

    fn signal(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        // An eventfd write fails only when 2^64-2 signals are pending, which KVM never lets happen; the driver would
        // see the status bit at its next interrupt anyway.
        let _ = self.line.write(1);
    }

    /// InterruptStatus as the driver reads it.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver wrote `bits` to InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Sets InterruptStatus, for a reset (0) or a restore.
    pub fn set_status(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// ConfigGeneration (virtio 1.2, 4.2.2): changes with every [`Interrupt::signal_config`].
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    /// Takes over a saved state, and raises the line once more when the driver had not acknowledged it: the edge may
    /// have been lost with the machine it was meant for.
    pub fn restore(&self, status: u32, config_generation: u32) {
        self.config_generation.store(config_generation, Ordering::SeqCst);
        self.set_status(0);
        if status != 0 {
            self.signal(status);
        }
    }

    /// The irqfd.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}
