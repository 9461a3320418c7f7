//! Snapshots: a stopped machine as a state file and memory files, and back.
//!
//! Taking one: the vCPUs stop, their state and the devices' is read, disks get a new top layer, the pages the guest
//! wrote are looked up, and a child process forked off the VMM (which sees memory as it stood) writes it all while the
//! machine already runs on. Restoring one: the state file is read in one go, memory is mapped MAP_PRIVATE from its
//! files and never read eagerly. `docs/snapshot-format.md` has the format.
//!
//! Knows descriptors, never paths.

pub mod candidates;
pub mod format;
#[cfg(test)]
mod golden_tests;
pub mod memory_map;
pub mod pagemap;
pub mod taking;
pub mod tracking;
pub mod writer;

use crate::{
    arch::x86_64::state::{ChipsetState, VcpuState},
    devices::{console::SerialState, virtio::transport::TransportState},
};
use memory_map::MemoryMap;
use sandboxvm_protocol::machine::{HostMode, MemorySize, VcpuCount};
use serde::{Deserialize, Serialize};

/// Everything about a machine that is not in its memory or on its disks.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// What executed guest ring 0: a guest set up for one mode does not run in another.
    pub host_mode: HostMode,
    /// vCPUs.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers and clock.
    pub chipset: ChipsetState,
    /// The console's UART.
    pub serial: SerialState,
    /// virtio devices in window order.
    pub devices: Vec<TransportState>,
}

/// Content of a state file.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotState {
    /// Guest memory.
    pub memory_size: MemorySize,
    /// vCPUs.
    pub vcpu_count: VcpuCount,
    /// Where each page of memory is.
    pub memory: MemoryMap,
    /// The rest.
    pub machine: MachineState,
}
