//! State of a vCPU before its first instruction: 64-bit mode as the Linux boot protocol asks
//! (Documentation/x86/boot.rst, "64-bit boot protocol").

use super::layout;
use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;

/// Why a vCPU cannot be given its first state.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Boot structures do not fit guest memory.
    #[error("cannot write boot structures into guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RegistersError {
    move |source| RegistersError::Kvm { call, source }
}

const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;

/// Flat 64-bit code, flat data, and a TSS, as GDT words.
const GDT_TABLE: [u64; 4] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

/// Writes the boot GDT and an identity map of the first GiB in 2 MiB pages.
///
/// # Errors
/// When guest memory is too small for them.
pub fn write_boot_tables(memory: &GuestMemory) -> Result<(), RegistersError> {
    for (i, word) in GDT_TABLE.iter().enumerate() {
        memory.write_obj(*word, GuestAddress(layout::GDT.0 + 8 * i as u64))?;
    }
    const PRESENT_WRITABLE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    let pdpt = layout::PAGE_TABLES.0 + 0x1000;
    let pd = layout::PAGE_TABLES.0 + 0x2000;
    memory.write_obj(pdpt | PRESENT_WRITABLE, layout::PAGE_TABLES)?;
    memory.write_obj(pd | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    for i in 0..512u64 {
        memory.write_obj(i << 21 | PRESENT_WRITABLE | HUGE, GuestAddress(pd + 8 * i))?;
    }
    Ok(())
}

/// Puts the boot vCPU at `entry` in 64-bit mode with RSI at the zero page.
///
/// # Errors
/// When KVM refuses.
pub fn set_boot_state(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), RegistersError> {
    let segment = |index: u16, type_: u8, db: u8, l: u8, s: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_,
        present: 1,
        dpl: 0,
        db,
        s,
        l,
        g: 1,
        ..Default::default()
    };
    let code = segment(1, 0xb, 0, 1, 1);
    let data = segment(2, 0x3, 1, 0, 1);
    let tss = segment(3, 0xb, 0, 0, 0);
    let mut sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = tss;
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = 8 * 4 - 1;
    // No IDT: the kernel loads its own before it enables interrupts; anything earlier is a triple fault, reported.
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rflags: 2, rip: entry.0, rsi: layout::ZERO_PAGE.0, ..Default::default() };
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
    // Power-on values of the x87 control word and MXCSR (SDM vol. 3A, 10.1.1).
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }).map_err(kvm("KVM_SET_FPU"))
}

/// MSRs every vCPU starts with.
///
/// # Errors
/// When KVM refuses one.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    const MISC_ENABLE: u32 = 0x1a0;
    const MISC_ENABLE_FAST_STRING: u64 = 1;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [entry(MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK), entry(MISC_ENABLE, MISC_ENABLE_FAST_STRING)];
    // Two entries are far below the list's capacity.
    let msrs = Msrs::from_entries(&entries).expect("two MSRs fit a list");
    let set = vcpu.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
    if set == entries.len() {
        Ok(())
    } else {
        Err(RegistersError::Kvm { call: "KVM_SET_MSRS", source: kvm_ioctls::Error::new(libc::EINVAL) })
    }
}

/// Wires LINT0 to the PIC and LINT1 to NMI, as firmware would (MP specification 1.4, 3.6.2.2).
///
/// # Errors
/// When KVM refuses.
pub fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY_EXTINT: u32 = 7 << 8;
    const DELIVERY_NMI: u32 = 4 << 8;
    let mut lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
    set_delivery(&mut lapic, LVT_LINT0, DELIVERY_EXTINT);
    set_delivery(&mut lapic, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).map_err(kvm("KVM_SET_LAPIC"))
}

fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes: [u8; 4] = std::array::from_fn(|i| lapic.regs[register + i].cast_unsigned());
    let value = u32::from_le_bytes(bytes) & !0x700 | mode;
    for (slot, byte) in lapic.regs[register..register + 4].iter_mut().zip(value.to_le_bytes()) {
        *slot = byte.cast_signed();
    }
}
