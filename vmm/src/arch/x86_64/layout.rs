//! The guest-physical address map.
//!
//! ```text
//! 0x0000_0500  GDT                         0x0002_0000  kernel command line
//! 0x0000_7000  boot_params (zero page)     0x0003_0000  setup_data: RNG seed
//! 0x0000_9000  boot page tables            0x0009_fc00  MP table (last KiB of base memory)
//! 0x0003_1000  mailbox of the guest's kernel
//! 0x0010_0000  kernel, where its ELF headers say
//! 0xc000_0000  end of low memory; the hole for MMIO up to
//! 0x1_0000_0000  high memory
//! ```

use kvm_bindings::kvm_msi;
use sandboxvm_protocol::machine::MemorySize;
use vm_memory::GuestAddress;

/// Boot GDT.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// `struct boot_params` (Documentation/x86/zero-page.rst).
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// First boot page table; two more pages follow.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line in bytes, its NUL included (COMMAND_LINE_SIZE on x86).
pub const CMDLINE_MAX: usize = 2048;
/// `struct setup_data` with the RNG seed.
pub const RNG_SEED: GuestAddress = GuestAddress(0x3_0000);
/// A page that no kernel uses, since Linux keeps off everything below 1 MiB: see [`crate::machine::mailbox`].
pub const MAILBOX: GuestAddress = GuestAddress(0x3_1000);
/// MP table, and the end of usable base memory.
pub const MPTABLE: GuestAddress = GuestAddress(0x9_fc00);
/// End of base memory.
pub const BASE_MEMORY_END: u64 = 0xa_0000;
/// Start of memory above the legacy hole, where kernels lie.
pub const HIGH_BASE: u64 = 0x10_0000;
/// First address that low memory may not use.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// First address after the hole.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes of one virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// GSI of the first virtio-mmio device; the next ones follow. Below it are the legacy ISA interrupts.
pub const VIRTIO_GSI: u32 = 5;
/// GSI of the serial console.
pub const SERIAL_GSI: u32 = 4;
/// Last GSI of the in-kernel IOAPIC.
pub const LAST_GSI: u32 = 23;
/// Three pages that VMX without unrestricted guest needs (KVM_SET_TSS_ADDR).
pub const KVM_TSS: usize = 0xfffb_d000;
/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC: u32 = 0xfee0_0000;

/// A message that raises `vector` on one vCPU: fixed, edge-triggered, by its APIC ID, which is its index (Intel SDM,
/// volume 3, 11.11).
#[must_use]
pub fn message_to(vcpu: u32, vector: u8) -> kvm_msi {
    kvm_msi { address_lo: LAPIC | vcpu << 12, data: u32::from(vector), ..Default::default() }
}

/// Memory regions of a guest of `size`: start and length in bytes, ascending.
#[must_use]
pub fn memory_regions(size: MemorySize) -> Vec<(GuestAddress, u64)> {
    let low = size.bytes().min(MMIO_HOLE_START);
    let high = size.bytes() - low;
    let mut regions = vec![(GuestAddress(0), low)];
    if high > 0 {
        regions.push((GuestAddress(MMIO_HOLE_END), high));
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::machine::MIB;

    #[test]
    fn memory_goes_around_the_hole() {
        let size = |mib: u64| MemorySize::try_from(mib * MIB).unwrap();
        assert_eq!(memory_regions(size(64)), [(GuestAddress(0), 64 * MIB)]);
        assert_eq!(memory_regions(size(3072)), [(GuestAddress(0), 3072 * MIB)]);
        assert_eq!(
            memory_regions(size(8192)),
            [(GuestAddress(0), 3072 * MIB), (GuestAddress(MMIO_HOLE_END), 5120 * MIB)]
        );
    }
}
