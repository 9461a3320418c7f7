//! The saved form of a transport, and the checks it must pass to become one again.
//!
//! A saved state is taken as hostile: it is held to the same rules as a driver's own register writes, so no file can put
//! a device where a guest could not have put it.

use super::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, MmioTransport, NEEDS_RESET, VIRTIO_RING_F_EVENT_IDX};
use crate::{
    devices::virtio::device::{DeviceError, DeviceType},
    memory::GuestMemory,
};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// A queue's registers as the driver wrote them; nothing of it is checked before DRIVER_OK.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// QueueNum.
    pub size: u32,
    /// QueueReady.
    pub ready: bool,
    /// Descriptor table, guest-physical.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

impl QueueRegisters {
    /// Makes `queue` ready as described, or says what is wrong with the description.
    pub(super) fn apply(&self, queue: &mut Queue, event_idx: bool, memory: &GuestMemory) -> Result<(), String> {
        let refused = |error: virtio_queue::Error| format!("{error} ({self:x?})");
        let size = u16::try_from(self.size).map_err(|_| format!("size {}", self.size))?;
        queue.try_set_size(size).map_err(|_| format!("size {size} of at most {}", queue.max_size()))?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).map_err(refused)?;
        queue.try_set_avail_ring_address(GuestAddress(self.available)).map_err(refused)?;
        queue.try_set_used_ring_address(GuestAddress(self.used)).map_err(refused)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if queue.is_valid(memory) {
            return Ok(());
        }
        queue.set_ready(false);
        Err(format!("its rings are not all in memory ({self:x?})"))
    }
}

/// Everything a transport keeps, for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// virtio device type.
    pub device_type: u32,
    /// Status register.
    pub status: u32,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// Features the driver accepted.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_sel: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// One per queue.
    pub queues: Vec<QueueState>,
    /// The device's own.
    pub device: Vec<u8>,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Its registers.
    pub registers: QueueRegisters,
    /// Position of the device in the available ring.
    pub next_available: u16,
    /// Position of the device in the used ring.
    pub next_used: u16,
}

/// A saved state is not that of this device.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another type of device.
    #[error("the saved virtio device is of type {saved}, this one is {device:?}")]
    DeviceType {
        /// In the file.
        saved: u32,
        /// Of the transport.
        device: DeviceType,
    },
    /// Another number of queues.
    #[error("the saved {device:?} device has {saved} queues, this one has {count}")]
    QueueCount {
        /// Device.
        device: DeviceType,
        /// In the file.
        saved: usize,
        /// Of the device.
        count: usize,
    },
    /// Features that this build's device does not offer.
    #[error("the saved {device:?} device agreed on features {saved:#x}, this one offers {offered:#x}")]
    Features {
        /// Device.
        device: DeviceType,
        /// In the file.
        saved: u64,
        /// Of the device.
        offered: u64,
    },
    /// A status that no driver can bring about.
    #[error("the saved {device:?} device has the impossible status {status:#x}, interrupt {interrupt:#x}")]
    Status {
        /// Device.
        device: DeviceType,
        /// Status register.
        status: u32,
        /// InterruptStatus register.
        interrupt: u32,
    },
    /// A queue or the device's own bytes are refused.
    #[error("the saved {device:?} device cannot be restored: {error}")]
    Device {
        /// Device.
        device: DeviceType,
        /// Why.
        error: DeviceError,
    },
}

impl MmioTransport {
    /// The complete state. The caller sees to it that nothing is called meanwhile.
    #[must_use]
    pub fn save(&self) -> TransportState {
        let queue = |(queue, &registers): (&Queue, &QueueRegisters)| QueueState {
            registers,
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
        };
        TransportState {
            device_type: self.device.device_type().number(),
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            queue_sel: self.queue_sel,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.config_generation(),
            queues: self.queues.iter().zip(&self.registers).map(queue).collect(),
            device: self.device.save_state(),
        }
    }

    /// Takes over a saved state. Guest memory must hold what it held at the save already. Call
    /// [`MmioTransport::notify_all`] once the machine may run, for buffers whose notification was still on its way.
    ///
    /// # Errors
    /// When the state cannot have come from such a device over such memory; the transport is in its reset state then.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        self.reset();
        let result = self.try_restore(state);
        if result.is_err() {
            self.reset();
        }
        result
    }

    fn try_restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let device = self.device.device_type();
        if state.device_type != device.number() {
            return Err(RestoreError::DeviceType { saved: state.device_type, device });
        }
        if state.queues.len() != self.queues.len() {
            return Err(RestoreError::QueueCount { device, saved: state.queues.len(), count: self.queues.len() });
        }
        if !status_is_possible(state.status) || state.interrupt_status & !0b11 != 0 {
            let (status, interrupt) = (state.status, state.interrupt_status);
            return Err(RestoreError::Status { device, status, interrupt });
        }
        if state.status & FEATURES_OK != 0 && !self.features_agree(state.driver_features) {
            let (saved, offered) = (state.driver_features, self.offered_features());
            return Err(RestoreError::Features { device, saved, offered });
        }
        let refused = |error| RestoreError::Device { device, error };
        self.status = state.status;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.driver_features = state.driver_features;
        self.queue_sel = state.queue_sel;
        for (index, saved) in state.queues.iter().enumerate() {
            self.registers[index] = saved.registers;
            // Before DRIVER_OK the registers are only what the driver wrote so far; after a failure the queues are dead.
            if self.is_live() && saved.registers.ready {
                let queue = &mut self.queues[index];
                let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
                saved
                    .registers
                    .apply(queue, event_idx, &self.memory)
                    .map_err(|what| refused(DeviceError::Queue { queue: index, what }))?;
                // A device returns what it took, in any order: it is never ahead in the used ring, nor behind by more
                // than the queue holds. One that were ahead could feed itself, where both rings lie in one place.
                let held = saved.next_available.wrapping_sub(saved.next_used);
                if held > queue.size() {
                    let what = format!("it holds {held} chains of a queue of {}", queue.size());
                    return Err(refused(DeviceError::Queue { queue: index, what }));
                }
                queue.set_next_avail(saved.next_available);
                queue.set_next_used(saved.next_used);
            }
        }
        self.device.restore_state(&state.device).map_err(refused)?;
        self.interrupt.restore(state.interrupt_status, state.config_generation);
        Ok(())
    }
}

/// Whether the driver's bits came in the only order there is; the two failure bits may be added to any of them.
fn status_is_possible(status: u32) -> bool {
    let steps = status & !(NEEDS_RESET | FAILED);
    matches!(steps, 0 | ACKNOWLEDGE)
        || steps == ACKNOWLEDGE | DRIVER
        || steps == ACKNOWLEDGE | DRIVER | FEATURES_OK
        || steps == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
}
