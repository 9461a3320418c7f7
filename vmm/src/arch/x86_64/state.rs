//! Everything KVM knows of a stopped machine beyond its memory: vCPUs, interrupt controllers, clock. Read between close
//! and open of the run gate, written before the first KVM_RUN.
//!
//! The order of restoring is KVM's (Documentation/virt/kvm/api.rst and what each call overwrites): irqchip, then per
//! vCPU CPUID, special registers, XCRs, XSAVE, debug registers, local APIC, MSRs with the TSC before its deadline, MP
//! state, events, general registers; the clock last.

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES,
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs,
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Most MSRs a saved vCPU may name; KVM lists far fewer.
const MAX_MSRS: usize = 1024;

/// Why state could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// A saved list is longer than KVM takes.
    #[error("saved state has {count} {what}, more than the {max} KVM takes; the snapshot is damaged")]
    TooMany {
        /// Entries of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many at most.
        max: usize,
    },
    /// The saved vCPU shows its guest what no vCPU does that boots here.
    #[error(
        "the saved CPUID leaf {function:#x} ({index:#x}) shows more than a guest gets on this host; the snapshot is \
             damaged, or was made on another kind of processor"
    )]
    Cpuid {
        /// Leaf.
        function: u32,
        /// Sub-leaf.
        index: u32,
    },
    /// KVM refused one MSR.
    #[error("KVM refused MSR {index:#x}; the snapshot was made on another kind of processor")]
    Msr {
        /// Its number.
        index: u32,
    },
}

fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { call, source }
}

/// One vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    regs: kvm_regs,
}

impl VcpuState {
    /// Reads a vCPU that is not running. `msr_indices` are those KVM names (see [`msr_indices`]).
    ///
    /// # Errors
    /// When a KVM call fails.
    pub fn save(vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<Self, StateError> {
        // MP state first: the call has KVM deliver what is pending (INIT, SIPI) before anything else is read.
        let mp_state = vcpu.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?;
        Ok(Self {
            mp_state,
            regs: vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            xsave: vcpu.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?,
            xcrs: vcpu.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?,
            debug: vcpu.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?,
            lapic: vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?,
            msrs: save_msrs(vcpu, msr_indices)?,
            events: vcpu.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
            cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_CPUID2"))?.as_slice().to_vec(),
        })
    }

    pub(super) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    pub(super) fn msrs(&self) -> &[kvm_msr_entry] {
        &self.msrs
    }

    /// Makes this the state of a vCPU of the kind of `other`'s processor, for a test that must run on any host.
    #[cfg(test)]
    pub(crate) fn take_processor_of(&mut self, other: Self) {
        let Self { cpuid, msrs, xcrs, xsave, .. } = other;
        (self.cpuid, self.msrs, self.xcrs, self.xsave) = (cpuid, msrs, xcrs, xsave);
    }

    /// Puts a vCPU that never ran into this state.
    ///
    /// # Errors
    /// When a KVM call fails or the state does not fit this host.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let too_many = |what, count, max| move |_| StateError::TooMany { what, count, max };
        let count = self.cpuid.len();
        let cpuid =
            CpuId::from_entries(&self.cpuid).map_err(too_many("CPUID entries", count, KVM_MAX_CPUID_ENTRIES))?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        self.restore_registers(vcpu)
    }

    /// As [`VcpuState::restore`] for a vCPU that has this CPUID already, because it ran before.
    ///
    /// # Errors
    /// When a KVM call fails or the state does not fit this host.
    pub fn restore_registers(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        vcpu.set_sregs(&self.sregs).map_err(kvm("KVM_SET_SREGS"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(kvm("KVM_SET_XCRS"))?;
        set_xsave(vcpu, &self.xsave)?;
        vcpu.set_debug_regs(&self.debug).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        self.restore_msrs(vcpu)?;
        vcpu.set_mp_state(self.mp_state).map_err(kvm("KVM_SET_MP_STATE"))?;
        vcpu.set_vcpu_events(&self.events).map_err(kvm("KVM_SET_VCPU_EVENTS"))?;
        vcpu.set_regs(&self.regs).map_err(kvm("KVM_SET_REGS"))
    }

    fn restore_msrs(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let count = self.msrs.len();
        if count > MAX_MSRS {
            return Err(StateError::TooMany { what: "MSRs", count, max: MAX_MSRS });
        }
        let msrs =
            Msrs::from_entries(&self.msrs).map_err(|_| StateError::TooMany { what: "MSRs", count, max: MAX_MSRS })?;
        let set = vcpu.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
        match self.msrs.get(set) {
            Some(refused) => Err(StateError::Msr { index: refused.index }),
            None => Ok(()),
        }
    }
}

/// Sets the x87, SSE and further state.
///
/// # Errors
/// When KVM refuses it.
pub(super) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), StateError> {
    // SAFETY: KVM reads 4 KiB from a `kvm_xsave` unless the process asked for dynamically enabled features (AMX) by
    // arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM), which this one never does.
    unsafe { vcpu.set_xsave(xsave) }.map_err(kvm("KVM_SET_XSAVE"))
}

/// True when only another vCPU can make this stopped one execute an instruction.
///
/// # Errors
/// When KVM does not say.
pub fn can_never_run(vcpu: &VcpuFd) -> Result<bool, StateError> {
    /// IF (SDM vol. 3A, 2.3).
    const INTERRUPTS_ENABLED: u64 = 1 << 9;
    match vcpu.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?.mp_state {
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Ok(true),
        KVM_MP_STATE_HALTED => {
            let regs = vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?;
            let events = vcpu.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?;
            let wakes = events.nmi.pending | events.nmi.injected | events.smi.pending | events.exception.injected;
            Ok(regs.rflags & INTERRUPTS_ENABLED == 0 && wakes == 0)
        }
        _ => Ok(false),
    }
}

/// MSRs that make up a vCPU's state on this host.
///
/// # Errors
/// When KVM does not say.
pub fn msr_indices(kvm_file: &Kvm) -> Result<Vec<u32>, StateError> {
    let list = kvm_file.get_msr_index_list().map_err(kvm("KVM_GET_MSR_INDEX_LIST"))?;
    let mut indices = list.as_slice().to_vec();
    indices.retain(|index| !matches!(*index, MSR_IA32_TSC | MSR_IA32_TSC_DEADLINE));
    // Setting the deadline compares it with the TSC, so that goes in before.
    indices.extend([MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE]);
    Ok(indices)
}

/// A vCPU's TSC, as the guest's kernel reads it.
///
/// # Errors
/// When KVM does not say.
pub fn tsc(vcpu: &VcpuFd) -> Result<u64, StateError> {
    msr(vcpu, MSR_IA32_TSC)
}

/// The TSC at which a vCPU's timer fires; 0 when it is not set.
///
/// # Errors
/// When KVM does not say.
pub fn tsc_deadline(vcpu: &VcpuFd) -> Result<u64, StateError> {
    msr(vcpu, MSR_IA32_TSC_DEADLINE)
}

/// Thousands of TSC ticks in a second.
///
/// # Errors
/// When KVM does not say.
pub fn tsc_khz(vcpu: &VcpuFd) -> Result<u32, StateError> {
    vcpu.get_tsc_khz().map_err(kvm("KVM_GET_TSC_KHZ"))
}

/// Whether a vCPU that stands waits for an interrupt.
///
/// # Errors
/// When KVM does not say.
pub fn is_halted(vcpu: &VcpuFd) -> Result<bool, StateError> {
    Ok(vcpu.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?.mp_state != KVM_MP_STATE_RUNNABLE)
}

fn msr(vcpu: &VcpuFd, index: u32) -> Result<u64, StateError> {
    let entry = kvm_msr_entry { index, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).expect("one is less than what fits");
    match vcpu.get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Err(StateError::Msr { index }),
    }
}

/// KVM stops at the first MSR it refuses; that one is left out and the rest is tried again.
fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut saved = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let count = entries.len();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| StateError::TooMany { what: "MSRs", count, max: MAX_MSRS })?;
        let read = vcpu.get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))?;
        saved.extend_from_slice(&msrs.as_slice()[..read]);
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    // A zero deadline disarms the timer although its interrupt may be on its way (the vCPU was stopped between the
    // two): one that lies in the past fires immediately instead, and an idle guest takes a spurious tick.
    let tsc = saved.iter().find(|msr| msr.index == MSR_IA32_TSC).map_or(0, |msr| msr.data);
    for msr in saved.iter_mut().filter(|msr| msr.index == MSR_IA32_TSC_DEADLINE && msr.data == 0) {
        msr.data = tsc;
    }
    Ok(saved)
}

/// Interrupt controllers and clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChipsetState {
    /// PIC master, PIC slave, IOAPIC.
    irqchips: [kvm_irqchip; 3],
    clock: kvm_clock_data,
}

impl ChipsetState {
    /// Reads a stopped machine's.
    ///
    /// # Errors
    /// When a KVM call fails.
    pub fn save(vm: &VmFd) -> Result<Self, StateError> {
        let clock = vm.get_clock().map_err(kvm("KVM_GET_CLOCK"))?;
        let mut irqchips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut irqchips {
            vm.get_irqchip(chip).map_err(kvm("KVM_GET_IRQCHIP"))?;
        }
        Ok(Self { irqchips, clock })
    }

    /// Sets the interrupt controllers. Before the vCPUs' local APICs.
    ///
    /// # Errors
    /// When a KVM call fails.
    pub fn restore_irqchips(&self, vm: &VmFd) -> Result<(), StateError> {
        self.irqchips.iter().try_for_each(|chip| vm.set_irqchip(chip)).map_err(kvm("KVM_SET_IRQCHIP"))
    }

    /// Sets the paravirtual clock to where it stood: the time in between does not exist for the guest's monotonic
    /// clock; its wall clock is the agent's to correct.
    ///
    /// # Errors
    /// When a KVM call fails.
    pub fn restore_clock(&self, vm: &VmFd) -> Result<(), StateError> {
        // Without KVM_CLOCK_REALTIME KVM does not add the real time that went by.
        let clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(kvm("KVM_SET_CLOCK"))
    }
}
