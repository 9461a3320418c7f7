//! Device models: everything a guest can reach by port or MMIO access.
//!
//! [`board`] puts them at their addresses; [`set`] lists the virtio devices, and says how to add one; [`kind`] is what
//! each of them tells the rest of the VMM about itself. A device never sees an address, only an offset, and never a
//! length it did not check.

pub mod board;
pub mod console;
pub mod kind;
pub mod set;
pub mod virtio;

use sandboxvm_protocol::vmm::ExitReason;
use std::fmt;

/// What a vCPU calls when the guest touches a port or an address without memory. `Err` ends the machine.
pub trait GuestAccess: fmt::Debug + Send + Sync {
    /// OUT.
    ///
    /// # Errors
    /// When no device owns the port.
    fn port_write(&self, port: u16, data: &[u8]) -> Result<(), ExitReason>;
    /// IN.
    ///
    /// # Errors
    /// When no device owns the port.
    fn port_read(&self, port: u16, data: &mut [u8]) -> Result<(), ExitReason>;
    /// A store.
    ///
    /// # Errors
    /// When no device owns the address.
    fn mmio_write(&self, address: u64, data: &[u8]) -> Result<(), ExitReason>;
    /// A load.
    ///
    /// # Errors
    /// When no device owns the address.
    fn mmio_read(&self, address: u64, data: &mut [u8]) -> Result<(), ExitReason>;
}
