//! What a saved vCPU may show its guest and set in KVM: no more than a vCPU that boots here. A state file may be forged, and
//! a CPUID bit is a door: to KVM's code for nested virtualisation, to performance counters, to transactions.
//!
//! To be checked before a vCPU takes anything from a state file.

use super::{
    cpuid,
    state::{self, StateError, VcpuState},
};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use sandboxvm_protocol::machine::HostMode;
use std::{arch::x86_64::__cpuid_count, collections::HashSet};

/// Registers of a leaf whose bits each stand for a feature, as a sum of [`EAX`] to [`EDX`]. SDM vol. 2A and APM vol. 3,
/// CPUID; Documentation/virt/kvm/x86/cpuid.rst.
const FEATURES: [(u32, Option<u32>, u8); 17] = [
    (0x1, None, ECX | EDX),
    (0x6, None, EAX | ECX),
    (0x7, Some(0), EBX | ECX | EDX),
    (0x7, None, EAX | EBX | ECX | EDX),
    // Components of the extended state, and the forms of XSAVE.
    (EXTENDED_STATE, Some(0), EAX | EDX),
    (EXTENDED_STATE, Some(1), EAX | ECX | EDX),
    (0x19, None, EAX | EBX | ECX),
    (0x1e, Some(1), EAX),
    (0x24, None, EAX | EBX),
    (KVM_FEATURES, None, EAX | EDX),
    (0x8000_0001, None, ECX | EDX),
    (0x8000_0007, None, EBX | EDX),
    (0x8000_0008, None, EBX),
    (0x8000_000a, None, EDX),
    (0x8000_0021, None, EAX | ECX),
    (0x8000_0022, None, EAX),
    (0xc000_0001, None, EDX),
];
const EXTENDED_STATE: u32 = 0xd;
const KVM_FEATURES: u32 = 0x4000_0001;
const EAX: u8 = 1;
const EBX: u8 = 2;
const ECX: u8 = 4;
const EDX: u8 = 8;

/// Bits that KVM itself keeps as the guest's CR4 is: OSXSAVE and OSPKE.
const KEPT_BY_KVM: [(u32, usize, u32); 2] = [(0x1, 2, 1 << 27), (0x7, 2, 1 << 4)];

/// Refuses saved vCPUs that show more than ones that boot on `kvm`.
///
/// # Errors
/// [`StateError::Cpuid`], or when KVM does not say what it supports.
pub fn check_cpuid(kvm: &Kvm, mode: HostMode, vcpus: &[VcpuState]) -> Result<(), StateError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| StateError::Kvm { call: "KVM_GET_SUPPORTED_CPUID", source })?;
    let too_many = |count, max| StateError::TooMany { what: "vCPUs", count, max };
    let count = u8::try_from(vcpus.len()).map_err(|_| too_many(vcpus.len(), u8::MAX.into()))?;
    for (index, vcpu) in (0..count).zip(vcpus) {
        let shown = cpuid::for_vcpu(&supported, index, count).map_err(|_| StateError::TooMany {
            what: "CPUID entries",
            count: supported.as_slice().len(),
            max: KVM_MAX_CPUID_ENTRIES,
        })?;
        vcpu.cpuid().iter().try_for_each(|entry| check_entry(entry, shown.as_slice(), mode))?;
    }
    Ok(())
}

/// Refuses saved vCPUs that set MSRs which do not belong to a vCPU's state on `kvm`.
///
/// # Errors
/// [`StateError::Msr`], or when KVM does not say which are.
pub fn check_msrs(kvm: &Kvm, vcpus: &[VcpuState]) -> Result<(), StateError> {
    let known = state::msr_indices(kvm)?.into_iter().collect();
    vcpus.iter().try_for_each(|vcpu| check_indices(vcpu.msrs().iter().map(|msr| msr.index), &known))
}

fn check_indices(mut saved: impl Iterator<Item = u32>, known: &HashSet<u32>) -> Result<(), StateError> {
    match saved.find(|index| !known.contains(index)) {
        Some(index) => Err(StateError::Msr { index }),
        None => Ok(()),
    }
}

fn registers(entry: &kvm_cpuid_entry2) -> [u32; 4] {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// What the processor itself says, where KVM adds that to what a vCPU is given: its guest's user mode sees nothing else
/// there.
fn shown_anyway(mode: HostMode, entry: &kvm_cpuid_entry2) -> [u32; 4] {
    if mode != HostMode::Pvm {
        return [0; 4];
    }
    let own = __cpuid_count(entry.function, entry.index);
    [own.eax, own.ebx, own.ecx, own.edx]
}

fn check_entry(saved: &kvm_cpuid_entry2, shown: &[kvm_cpuid_entry2], mode: HostMode) -> Result<(), StateError> {
    let is_same = |entry: &&kvm_cpuid_entry2| {
        let by_index = (entry.flags | saved.flags) & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        entry.function == saved.function && (!by_index || entry.index == saved.index)
    };
    let refused = || StateError::Cpuid { function: saved.function, index: saved.index };
    let here = shown.iter().find(is_same).map(registers);
    let counted = match here {
        // A leaf that says nothing, or nothing here, says nothing. That of the extended state has sizes beside, which KVM
        // keeps as the guest's XCR0 is.
        None | Some([0, 0, 0, 0]) if saved.function != EXTENDED_STATE => EAX | EBX | ECX | EDX,
        _ => feature_registers(saved),
    };
    let here = here.unwrap_or_default();
    for (number, (saved_register, here)) in registers(saved).into_iter().zip(here).enumerate() {
        let kept: u32 = KEPT_BY_KVM
            .iter()
            .filter(|(function, register, _)| (*function, *register) == (saved.function, number))
            .map(|(.., bits)| bits)
            .sum();
        let more = saved_register & !here & !kept;
        if counted >> number & 1 != 0 && more != 0 && more & !shown_anyway(mode, saved)[number] != 0 {
            return Err(refused());
        }
    }
    // A wider address than the processor has would let reserved bits of page tables through.
    if saved.function == 0x8000_0008 && saved.eax & 0xff > here[0] & 0xff {
        return Err(refused());
    }
    Ok(())
}

/// Which registers of the leaf hold features; the first line that names it counts.
fn feature_registers(entry: &kvm_cpuid_entry2) -> u8 {
    let line = FEATURES
        .iter()
        .find(|(function, index, _)| *function == entry.function && index.is_none_or(|index| index == entry.index));
    line.map_or(0, |(.., registers)| *registers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::CpuId;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn supported() -> CpuId {
        let all = [u32::MAX; 4];
        let leaves = [0x1, 0x6, 0x7, 0xa, 0xd, KVM_FEATURES, 0x8000_0001, 0x8000_000a];
        let mut entries: Vec<_> = leaves.iter().map(|leaf| entry(*leaf, 0, all)).collect();
        entries.push(entry(0x8000_0008, 0, [48, 0, 0, 0]));
        CpuId::from_entries(&entries).unwrap()
    }

    fn check(changed: kvm_cpuid_entry2) -> Result<(), StateError> {
        check_entry(&changed, cpuid::for_vcpu(&supported(), 0, 1).unwrap().as_slice(), HostMode::Vmx)
    }

    #[test]
    fn what_a_booting_vcpu_has_is_accepted() {
        let shown = cpuid::for_vcpu(&supported(), 0, 1).unwrap();
        shown.as_slice().iter().for_each(|entry| check_entry(entry, shown.as_slice(), HostMode::Vmx).unwrap());
    }

    #[test]
    fn what_is_hidden_from_a_booting_vcpu_is_refused() {
        let refused = |entry: kvm_cpuid_entry2| {
            assert!(matches!(check(entry), Err(StateError::Cpuid { .. })), "{entry:x?}");
        };
        refused(entry(0x1, 0, [0, 0, 1 << 5, 0])); // VMX
        refused(entry(0x8000_0001, 0, [0, 0, 1 << 2, 0])); // SVM
        refused(entry(0x7, 0, [0, 1 << 11, 0, 0])); // RTM
        refused(entry(0xa, 0, [2, 0, 0, 0])); // performance counters
        refused(entry(0x8000_000a, 0, [1, 0, 0, 0]));
        refused(entry(KVM_FEATURES, 0, [1 << 4, 0, 0, 0])); // asynchronous page faults
        refused(entry(0x8000_0022, 0, [1, 0, 0, 0])); // no such leaf here
        refused(entry(0x8000_0008, 0, [52, 0, 0, 0]));
    }

    #[test]
    fn msrs_that_are_no_part_of_a_vcpus_state_are_refused() {
        const EFER: u32 = 0xc000_0080;
        const DEBUGCTL: u32 = 0x1d9;
        let known = HashSet::from([0x10, EFER]);
        check_indices([EFER, 0x10].into_iter(), &known).unwrap();
        let refused = check_indices([EFER, DEBUGCTL].into_iter(), &known);
        assert!(matches!(refused, Err(StateError::Msr { index: DEBUGCTL })));
    }

    #[test]
    fn what_kvm_keeps_and_what_is_no_feature_is_accepted() {
        check(entry(0x1, 0, [7, 7, 1 << 27, 0])).unwrap();
        check(entry(0x7, 0, [0, 0, 1 << 4, 0])).unwrap();
        check(entry(0x8000_0008, 0, [40, 0, 0, 0])).unwrap();
        check(entry(0x99, 0, [0; 4])).unwrap();
    }

    /// KVM's own additions to what a vCPU is given do not make it refused.
    #[test]
    fn what_this_host_gives_a_vcpu_is_accepted() {
        if std::env::var_os("SANDBOXVM_NO_KVM").is_some_and(|value| value == "1") {
            return;
        }
        let kvm = Kvm::new().expect("KVM; SANDBOXVM_NO_KVM=1 leaves this test out");
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let given = cpuid::for_vcpu(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap(), 0, 1).unwrap();
        vcpu.set_cpuid2(&given).unwrap();
        let saved = VcpuState::save(&vcpu, &state::msr_indices(&kvm).unwrap()).unwrap();
        let mode = super::super::host_mode::detect().unwrap();
        check_cpuid(&kvm, mode, std::slice::from_ref(&saved)).unwrap();
        check_msrs(&kvm, &[saved]).unwrap();
    }
}
