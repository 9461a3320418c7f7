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

/// Bits of a leaf's EAX, EBX, ECX and EDX that no guest sees: what would let it count, trace, monitor or virtualise on the
/// host's processor, or reports the host's power and cache management. SDM vol. 2A and APM vol. 3, CPUID.
const HIDDEN: [(u32, u32, [u32; 4]); 3] = [
    (
        0x1,
        0,
        [
            0,
            0,
            // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, SDBG, xTPR, PDCM, DCA
            bits(&[2, 3, 4, 5, 6, 7, 8, 11, 14, 15, 18]),
            // DS, ACPI, TM, PBE
            bits(&[21, 22, 29, 31]),
        ],
    ),
    (
        0x7,
        0,
        [
            0,
            // SGX, HLE, RTM, RDT-M, MPX, RDT-A, Processor Trace: transactions are a tool for side channels
            bits(&[2, 4, 11, 12, 14, 15, 25]),
            // WAITPKG, ENQCMD, SGX_LC
            bits(&[5, 29, 30]),
            // UINTR, PCONFIG, architectural LBR
            bits(&[5, 18, 19]),
        ],
    ),
    (
        0x8000_0001,
        0,
        // SVM, IBS, SKINIT, WDT, LWP, node ID, performance counters (core, node, cache, time stamp), MONITORX
        [0, 0, bits(&[2, 10, 12, 13, 15, 19, 23, 24, 27, 28, 29]), 0],
    ),
];

const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut at = 0;
    while at < numbers.len() {
        mask |= 1 << numbers[at];
        at += 1;
    }
    mask
}

/// Leaves that say nothing to a guest: a processor's serial number, MONITOR, performance counters, cache allocation, SGX,
/// Processor Trace, PCONFIG, LBR; on AMD virtualisation, IBS, cache allocation, memory encryption, counters.
const SILENT: [u32; 16] = [
    0x3,
    0x5,
    0xa,
    0xf,
    0x10,
    0x12,
    0x14,
    0x1b,
    0x1c,
    0x23,
    0x8000_000a,
    0x8000_001b,
    0x8000_001c,
    0x8000_001f,
    0x8000_0020,
    0x8000_0022,
];

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
            KVM_FEATURES => entry.eax &= !KVM_FEATURES_HIDDEN,
            leaf if SILENT.contains(&leaf) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
        for (_, _, [eax, ebx, ecx, edx]) in HIDDEN.iter().filter(|(f, i, _)| (*f, *i) == (entry.function, entry.index))
        {
            entry.eax &= !eax;
            entry.ebx &= !ebx;
            entry.ecx &= !ecx;
            entry.edx &= !edx;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> CpuId {
        let functions = [0x1, 0x3, 0x5, 0x6, 0x7, 0xa, 0x10, 0x12, 0x14, KVM_FEATURES, 0x8000_0001, 0x8000_000a];
        let entry = |function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        CpuId::from_entries(&functions.map(entry)).unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function).unwrap()
    }

    #[test]
    fn what_no_guest_needs_is_hidden() {
        let shown = for_vcpu(&everything(), 0, 2).unwrap();
        let first = leaf(&shown, 0x1);
        assert_eq!(first.ecx & (1 << 3 | 1 << 5 | 1 << 15), 0, "MONITOR, VMX, PDCM");
        assert_eq!(first.ecx & HYPERVISOR, HYPERVISOR);
        assert_eq!(first.edx & 1 << 21, 0, "DS");
        let seventh = leaf(&shown, 0x7);
        assert_eq!(seventh.ebx & (1 << 2 | 1 << 4 | 1 << 11 | 1 << 25), 0, "SGX, HLE, RTM, Processor Trace");
        assert_ne!(seventh.ebx & 1 << 5, 0, "AVX2 stays");
        assert_eq!(leaf(&shown, 0x8000_0001).ecx & 1 << 2, 0, "SVM");
        for function in [0x3, 0x5, 0xa, 0x10, 0x12, 0x14, 0x8000_000a] {
            let entry = leaf(&shown, function);
            assert_eq!((entry.eax, entry.ebx, entry.ecx, entry.edx), (0, 0, 0, 0), "leaf {function:#x}");
        }
        assert_eq!(leaf(&shown, KVM_FEATURES).eax & KVM_FEATURES_HIDDEN, 0);
    }
}
