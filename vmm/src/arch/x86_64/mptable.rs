//! The MultiProcessor table (Intel MultiProcessor Specification 1.4): tells a guest without ACPI how many vCPUs there
//! are and how ISA interrupts reach the IOAPIC.

use super::layout;
use crate::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// APIC version the table states; KVM's local APIC and IOAPIC.
const APIC_VERSION: u8 = 0x14;

/// Writes floating pointer and table at [`layout::MPTABLE`].
///
/// # Errors
/// When guest memory ends before the table does.
pub fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), GuestMemoryError> {
    let table_address = layout::MPTABLE.0 + 16;
    memory.write_slice(&floating_pointer(table_address), layout::MPTABLE)?;
    memory.write_slice(&table(vcpus), GuestAddress(table_address))
}

/// MP floating pointer structure, section 4.1.
fn floating_pointer(table: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&low32(table).to_le_bytes());
    bytes[8] = 1; // length in 16-byte units
    bytes[9] = 4; // specification 1.4
    bytes[10] = checksum(&bytes);
    bytes
}

/// MP configuration table, sections 4.2 and 4.3.
fn table(vcpus: u8) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut push = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = 1 | u8::from(id == 0) << 1; // enabled, boot processor
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[0, id, APIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes()); // signature: any P6
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes()); // features: FPU, APIC
        push(&entry);
    }
    push(&[1, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a0, a1, a2, a3] = layout::IOAPIC.to_le_bytes();
    push(&[2, ioapic_id, APIC_VERSION, 1, a0, a1, a2, a3]);
    for irq in 0..=layout::LAST_GSI {
        let irq = irq.to_le_bytes()[0];
        // Type 0 (vectored), polarity and trigger as the bus has them: ISA, so active high and edge.
        push(&[3, 0, 0, 0, 0, irq, ioapic_id, irq]);
    }
    push(&[4, 3, 0, 0, 0, 0, 0, 0]); // ExtINT to LINT0
    push(&[4, 1, 0, 0, 0, 0, 0xff, 1]); // NMI to LINT1 of all

    let length = u16::try_from(44 + entries.len()).expect("44 bytes and at most 8 vCPUs' entries");
    let mut table = Vec::with_capacity(usize::from(length));
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[4, 0]); // specification 1.4, checksum below
    table.extend_from_slice(b"SANDBOXV");
    table.extend_from_slice(b"MICROVM     ");
    table.extend_from_slice(&[0; 6]); // no OEM table
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&layout::LAPIC.to_le_bytes());
    table.extend_from_slice(&[0; 4]); // no extended table
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    table
}

fn low32(address: u64) -> u32 {
    u32::try_from(address).expect("the table lies in base memory")
}

/// The byte that makes all bytes sum to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_to_zero_and_fits_below_base_memory_end() {
        for vcpus in 1..=8 {
            let table = table(vcpus);
            assert_eq!(table.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
            assert!(layout::MPTABLE.0 + 16 + table.len() as u64 <= layout::BASE_MEMORY_END);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        }
        assert_eq!(floating_pointer(0x9_fc10).iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    }
}
