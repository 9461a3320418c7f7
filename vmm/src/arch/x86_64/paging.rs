//! Guest-virtual addresses, walked as the processor does for an access of ring 0. KVM_TRANSLATE does not say whether a page
//! may be written to, and a write to one that a copy-on-write has yet to copy must fault.

use crate::memory::GuestMemory;
use kvm_bindings::kvm_sregs;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileMemory};

const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// An exception that the instruction raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) vector: u8,
    pub(super) error_code: u32,
    /// For a page fault.
    pub(super) address: Option<u64>,
}

/// #GP(0).
pub(super) const GP: Exception = Exception { vector: GENERAL_PROTECTION, error_code: 0, address: None };

/// Walks four levels of page tables (SDM vol. 3A, 4.5) for an access of ring 0, and marks the page as used.
pub(super) fn walk(
    memory: &GuestMemory,
    sregs: &kvm_sregs,
    address: u64,
    write: bool,
) -> Result<GuestAddress, Exception> {
    const PRESENT: u64 = 1 << 0;
    const WRITABLE: u64 = 1 << 1;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    const LARGE: u64 = 1 << 7;
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    const WRITE_PROTECT: u64 = 1 << 16;
    let fault = |present: bool| Exception {
        vector: PAGE_FAULT,
        error_code: u32::from(present) | u32::from(write) << 1,
        address: Some(address),
    };
    // Not canonical.
    if (address.cast_signed() << 16 >> 16).cast_unsigned() != address {
        return Err(GP);
    }
    let must_be_writable = write && sregs.cr0 & WRITE_PROTECT != 0;
    let mut table = sregs.cr3 & FRAME;
    for level in (0..4_u32).rev() {
        let shift = 12 + 9 * level;
        let entry_address = GuestAddress(table | (address >> shift & 0x1ff) << 3);
        let value = with_entry(memory, entry_address, |entry| entry.load(Ordering::Relaxed)).ok_or(GP)?;
        if value & PRESENT == 0 {
            return Err(fault(false));
        }
        if must_be_writable && value & WRITABLE == 0 {
            return Err(fault(true));
        }
        if level == 0 || (level < 3 && value & LARGE != 0) {
            let used = ACCESSED | if write { DIRTY } else { 0 };
            with_entry(memory, entry_address, |entry| entry.fetch_or(used, Ordering::Relaxed)).ok_or(GP)?;
            let offset = (1 << shift) - 1;
            return Ok(GuestAddress(value & FRAME & !offset | address & offset));
        }
        table = value & FRAME;
    }
    Err(GP)
}

/// Does something to a page-table entry in place, as other vCPUs change it too; `None` where there is no memory.
fn with_entry<T>(memory: &GuestMemory, address: GuestAddress, act: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
    let region = memory.find_region(address)?;
    let offset = MemoryRegionAddress(address.raw_value().checked_sub(region.start_addr().raw_value())?);
    let slice = region.get_slice(offset, size_of::<AtomicU64>()).ok()?;
    slice.get_atomic_ref::<AtomicU64>(0).ok().map(act)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryMmap};

    /// Page tables at 0x1000 to 0x4000 that map 0x5000 writable, 0x6000 not, and 0x200000 as a large page.
    pub(in super::super) fn paged() -> (GuestMemory, kvm_sregs) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let put = |address: u64, entry: u64| memory.write_obj(entry, GuestAddress(address)).unwrap();
        let tables = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x3008, 0x40_0083)];
        let pages = [(0x4028, 0x5003), (0x4030, 0x6001), (0x4038, 0x7003)];
        tables.into_iter().chain(pages).for_each(|(address, entry)| put(address, entry));
        (memory, kvm_sregs { cr0: 0x8001_0031, cr3: 0x1000, ..Default::default() })
    }

    #[test]
    fn a_walk_finds_what_the_processor_finds() {
        let (memory, mut sregs) = paged();
        let fault = |address, error_code| Err(Exception { vector: PAGE_FAULT, error_code, address: Some(address) });
        assert_eq!(walk(&memory, &sregs, 0x5040, true), Ok(GuestAddress(0x5040)));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x4028)).unwrap(), 0x5063, "accessed and dirty");
        assert_eq!(walk(&memory, &sregs, 0x6040, false), Ok(GuestAddress(0x6040)));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x4030)).unwrap(), 0x6021, "accessed");
        assert_eq!(walk(&memory, &sregs, 0x6040, true), fault(0x6040, 3));
        assert_eq!(walk(&memory, &sregs, 0x8000, true), fault(0x8000, 2));
        assert_eq!(walk(&memory, &sregs, 1 << 39, false), fault(1 << 39, 0));
        assert_eq!(walk(&memory, &sregs, 0x20_1fc0, true), Ok(GuestAddress(0x40_1fc0)));
        assert_eq!(walk(&memory, &sregs, 1 << 47, false), Err(GP));
        sregs.cr0 &= !(1 << 16);
        assert_eq!(walk(&memory, &sregs, 0x6040, true), Ok(GuestAddress(0x6040)));
        // Where there is no memory.
        sregs.cr3 = 0xffff_ffff_f000;
        assert_eq!(walk(&memory, &sregs, 0x5040, true), Err(GP));
    }
}
