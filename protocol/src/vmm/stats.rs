//! Counters and times of a machine, as its VMM reports them.

use super::status::Phase;
use crate::{
    capped,
    machine::{HostMode, VcpuCount},
};
use serde::{Deserialize, Serialize};

/// Counters of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// Phase of the machine.
    pub phase: Phase,
    /// What executes ring 0 of the guest.
    pub host_mode: HostMode,
    /// Counters of each vCPU.
    #[serde(with = "capped::List::<{ VcpuCount::MAX as usize }>")]
    pub vcpus: Vec<VcpuStats>,
    /// Nanoseconds from the start of the VMM process to the first KVM_RUN, if that has happened.
    pub first_run_ns: Option<u64>,
    /// Cost from the start of the VMM process until the agent listened, if it does.
    pub boot: Option<BootMark>,
    /// INT3 instructions emulated by the VMM because KVM could not.
    pub int3_emulated: u64,
    /// FWAIT instructions skipped because KVM could not execute them.
    pub fwait_skipped: u64,
}

/// When the phases of a machine's start happened, in nanoseconds of CLOCK_MONOTONIC, which all
/// processes of a host share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The VMM's process started.
    pub process_start: u64,
    /// It was confined, except for its system calls, and ready to receive its machine.
    pub confined: u64,
    /// It had received its machine.
    pub launched: u64,
    /// The machine was built and its vCPUs waited for the start, if that has happened.
    pub built: Option<u64>,
    /// The first KVM_RUN, if that has happened.
    pub first_run: Option<u64>,
}

/// Counters of one vCPU, from KVM's statistics (KVM_GET_STATS_FD) if this host has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Number of exits of all kinds.
    pub exits: u64,
    /// Number of instructions that KVM emulated. With [`HostMode::Pvm`] these are the executed
    /// guest-kernel instructions.
    pub insn_emulation: u64,
    /// Number of injected interrupts.
    pub irq_injections: u64,
    /// Number of exits to this VMM's port handlers.
    pub port_exits: u64,
    /// Number of exits to this VMM's MMIO handlers.
    pub mmio_exits: u64,
}

/// What the network card of a machine carried since the machine was built, in Ethernet frames. Frames
/// that were not carried are not in `frames` and `bytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStats {
    /// From the guest to the attached socket.
    pub sent: NetworkCounters,
    /// From the attached socket to the guest.
    pub received: NetworkCounters,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCounters {
    /// Number of frames.
    pub frames: u64,
    /// Their bytes, without the header of the device.
    pub bytes: u64,
    /// Number of frames that were dropped: they are too long, too short, tagged, ask for segmentation, or there was no
    /// link.
    pub dropped: u64,
}

/// The cost until the agent first listened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootMark {
    /// Nanoseconds since the VMM process started.
    pub elapsed_ns: u64,
    /// Number of emulated instructions of all vCPUs.
    pub insn_emulation: u64,
    /// Number of exits of all vCPUs.
    pub exits: u64,
}
