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
    /// Where the machine is.
    pub phase: Phase,
    /// What executes guest ring 0.
    pub host_mode: HostMode,
    /// One per vCPU.
    #[serde(with = "capped::List::<{ VcpuCount::MAX as usize }>")]
    pub vcpus: Vec<VcpuStats>,
    /// Nanoseconds from VMM process start to the first KVM_RUN, once there.
    pub first_run_ns: Option<u64>,
    /// From VMM process start to the agent's listening, once there.
    pub boot: Option<BootMark>,
    /// INT3 instructions emulated by the VMM because KVM could not.
    pub int3_emulated: u64,
    /// FWAIT instructions skipped because KVM could not execute them.
    pub fwait_skipped: u64,
}

/// When a machine came to life: nanoseconds of CLOCK_MONOTONIC, which all processes of a host share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The VMM's process began.
    pub process_start: u64,
    /// It was confined but for its system calls, and ready to be told what machine to build.
    pub confined: u64,
    /// It knew.
    pub launched: u64,
    /// The machine was built and its vCPUs waited to be let go, once there.
    pub built: Option<u64>,
    /// The first KVM_RUN, once there.
    pub first_run: Option<u64>,
}

/// Counters of one vCPU, from KVM's own statistics (KVM_GET_STATS_FD) where this host keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Exits, all kinds.
    pub exits: u64,
    /// Instructions that KVM emulated; with [`HostMode::Pvm`] this is the guest-kernel instructions executed.
    pub insn_emulation: u64,
    /// Interrupts injected.
    pub irq_injections: u64,
    /// Exits to this VMM's port handlers.
    pub port_exits: u64,
    /// Exits to this VMM's MMIO handlers.
    pub mmio_exits: u64,
}

/// What had been spent when the agent first listened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootMark {
    /// Nanoseconds since the VMM process started.
    pub elapsed_ns: u64,
    /// Sum over vCPUs of emulated instructions.
    pub insn_emulation: u64,
    /// Sum over vCPUs of exits.
    pub exits: u64,
}
