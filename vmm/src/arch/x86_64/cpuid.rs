//! The CPUID each vCPU shows: what KVM supports, less what no guest needs, plus this vCPU's place in the topology.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX bit 31: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX bit 24: the local APIC has a TSC-deadline timer, so that the guest needs no PIT (there is none).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX bit 21: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 6 EAX bit 2: the APIC timer runs in every power state. Linux asks for it before it goes without a PIT.
const ARAT: u32 = 1 << 2;
/// KVM's paravirtual features leaf (Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURES: u32 = 0x4000_0001;
/// Paravirtual features taken away: the old kvmclock pair (0) beside the new one, asynchronous page faults (4, 10, 14)
/// and steal time (5), which have the host write into guest memory behind a snapshot's back.
const KVM_FEATURES_HIDDEN: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 14;

/// CPUID of vCPU `index` of `count`, from KVM's supported set. One thread per core, all in one package.
pub fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    // KVM may list a topology leaf with other sub-leaves than ours.
    entries.retain(|e| !matches!(e.function, 0xb | 0x1f));
    for entry in &mut entries {
        match entry.function {
            0x1 => {
                entry.ecx |= HYPERVISOR | TSC_DEADLINE | X2APIC;
                // EBX: initial APIC ID (31:24), logical processors (23:16), CLFLUSH size kept.
                entry.ebx = entry.ebx & 0xffff | u32::from(index) << 24 | u32::from(count) << 16;
                // EDX bit 28 (HTT): the logical processor count is valid.
                entry.edx = entry.edx & !(1 << 28) | u32::from(count > 1) << 28;
            }
            0x4 => {
                // EAX 31:26: cores per package less one; 25:14: threads sharing this cache less one. The host's own
                // sharing says nothing about the guest's vCPUs.
                entry.eax = entry.eax & 0x3fff | u32::from(count - 1) << 26;
            }
            0x6 => entry.eax |= ARAT,
            // Performance counters, Processor Trace, SGX: nothing a sandbox needs.
            0xa | 0x12 | 0x14 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            KVM_FEATURES => entry.eax &= !KVM_FEATURES_HIDDEN,
            _ => {}
        }
    }
    entries.extend(topology(index, count));
    CpuId::from_entries(&entries)
}

/// Leaf 0xb (SDM vol. 2A, CPUID): a thread level of one, a core level of all.
fn topology(index: u8, count: u8) -> [kvm_cpuid_entry2; 2] {
    let level = |sub: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: sub,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: (sub + 1) << 8 | sub,
        edx: u32::from(index),
        ..Default::default()
    };
    [level(0, 0, 1), level(1, count.next_power_of_two().trailing_zeros(), u32::from(count))]
}
