//! The KVM requests that this crate makes, each by its number: `/dev/kvm` answers some two hundred, and what we never
//! ask for is refused before it reaches KVM.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_enable_cap, kvm_fpu, kvm_ioeventfd, kvm_irqchip, kvm_irqfd,
    kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_list, kvm_msrs, kvm_regs, kvm_sregs, kvm_translation,
    kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

/// KVM's type in a request's number (linux/kvm.h, KVMIO).
const KVM: u32 = 0xae << 8;

/// Without a structure (asm-generic/ioctl.h).
const fn plain(number: u32) -> u32 {
    KVM | number
}

/// With a `T` that KVM reads.
const fn reads<T>(number: u32) -> u32 {
    1 << 30 | size::<T>() << 16 | KVM | number
}

/// With a `T` that KVM writes.
const fn writes<T>(number: u32) -> u32 {
    2 << 30 | size::<T>() << 16 | KVM | number
}

/// With a `T` that KVM reads and writes.
const fn both<T>(number: u32) -> u32 {
    3 << 30 | size::<T>() << 16 | KVM | number
}

#[expect(clippy::cast_possible_truncation, reason = "KVM's structures are of a few kilobytes")]
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// A vCPU thread's: running, and what emulating an instruction takes.
pub(super) const OFTEN: &[u32] = &[
    plain(0x80),                     // KVM_RUN
    writes::<kvm_regs>(0x81),        // KVM_GET_REGS
    reads::<kvm_regs>(0x82),         // KVM_SET_REGS
    writes::<kvm_sregs>(0x83),       // KVM_GET_SREGS
    reads::<kvm_sregs>(0x84),        // KVM_SET_SREGS
    writes::<kvm_vcpu_events>(0x9f), // KVM_GET_VCPU_EVENTS
    reads::<kvm_vcpu_events>(0xa0),  // KVM_SET_VCPU_EVENTS
    both::<kvm_translation>(0x85),   // KVM_TRANSLATE
    writes::<kvm_xsave>(0xa4),       // KVM_GET_XSAVE
    reads::<kvm_xsave>(0xa5),        // KVM_SET_XSAVE
];

/// What building, saving and restoring a machine takes beside.
pub(super) const BUILDING: &[u32] = &[
    plain(0x01),                                // KVM_CREATE_VM
    plain(0x03),                                // KVM_CHECK_EXTENSION
    plain(0x04),                                // KVM_GET_VCPU_MMAP_SIZE
    both::<kvm_cpuid2>(0x05),                   // KVM_GET_SUPPORTED_CPUID
    both::<kvm_msr_list>(0x02),                 // KVM_GET_MSR_INDEX_LIST
    plain(0x41),                                // KVM_CREATE_VCPU
    reads::<kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
    plain(0x47),                                // KVM_SET_TSS_ADDR
    plain(0x60),                                // KVM_CREATE_IRQCHIP
    both::<kvm_irqchip>(0x62),                  // KVM_GET_IRQCHIP
    writes::<kvm_irqchip>(0x63),                // KVM_SET_IRQCHIP, whose direction KVM has the wrong way round
    reads::<kvm_irqfd>(0x76),                   // KVM_IRQFD
    reads::<kvm_ioeventfd>(0x79),               // KVM_IOEVENTFD
    reads::<kvm_clock_data>(0x7b),              // KVM_SET_CLOCK
    writes::<kvm_clock_data>(0x7c),             // KVM_GET_CLOCK
    both::<kvm_msrs>(0x88),                     // KVM_GET_MSRS
    reads::<kvm_msrs>(0x89),                    // KVM_SET_MSRS
    reads::<kvm_fpu>(0x8d),                     // KVM_SET_FPU
    writes::<kvm_lapic_state>(0x8e),            // KVM_GET_LAPIC
    reads::<kvm_lapic_state>(0x8f),             // KVM_SET_LAPIC
    reads::<kvm_cpuid2>(0x90),                  // KVM_SET_CPUID2
    both::<kvm_cpuid2>(0x91),                   // KVM_GET_CPUID2
    writes::<kvm_mp_state>(0x98),               // KVM_GET_MP_STATE
    reads::<kvm_mp_state>(0x99),                // KVM_SET_MP_STATE
    writes::<kvm_debugregs>(0xa1),              // KVM_GET_DEBUGREGS
    reads::<kvm_debugregs>(0xa2),               // KVM_SET_DEBUGREGS
    writes::<kvm_xcrs>(0xa6),                   // KVM_GET_XCRS
    reads::<kvm_xcrs>(0xa7),                    // KVM_SET_XCRS
    plain(0xa3),                                // KVM_GET_TSC_KHZ
    reads::<kvm_enable_cap>(0xa3),              // KVM_ENABLE_CAP
    reads::<kvm_msi>(0xa5),                     // KVM_SIGNAL_MSI
    plain(0xce),                                // KVM_GET_STATS_FD
];
