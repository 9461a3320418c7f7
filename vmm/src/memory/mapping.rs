//! Allocates guest memory, registers it as memslots, and gives pages back to the host.

use super::{GuestMemory, pages::host_parts};
use crate::arch::x86_64::layout;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use sandboxvm_protocol::machine::MemorySize;
use std::ops::Range;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Why guest memory cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no address space or commit left.
    #[error("cannot map {mib} MiB of guest memory: {source}; give the sandbox less memory", mib = .size.mib())]
    Map {
        /// Guest memory asked for.
        size: MemorySize,
        /// Why.
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM refused a memslot.
    #[error("KVM_SET_USER_MEMORY_REGION for {len:#x} bytes at {address:#x} failed: {source}")]
    Slot {
        /// Guest-physical start.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// Why.
        source: kvm_ioctls::Error,
    },
}

/// Anonymous memory for a machine that boots: zero pages, taken from the host only when touched.
///
/// # Errors
/// [`MemoryError::Map`].
pub fn allocate(size: MemorySize) -> Result<GuestMemory, MemoryError> {
    let ranges: Vec<(GuestAddress, usize)> = layout::memory_regions(size)
        .into_iter()
        .map(|(start, len)| (start, usize::try_from(len).expect("x86-64 has 64-bit usize")))
        .collect();
    GuestMemory::from_ranges(&ranges).map_err(|source| MemoryError::Map { size, source })
}

/// Drops everything written since `memory` was mapped from a snapshot's files: it reads as they do again.
///
/// # Errors
/// When madvise(2) refuses.
pub fn forget_writes(memory: &GuestMemory) -> std::io::Result<()> {
    for region in memory.iter() {
        let len = usize::try_from(region.len()).expect("x86-64 has 64-bit usize");
        // SAFETY: the range is a region's own mapping, private, and the vCPUs stand: dropping its written pages changes
        // what guest memory reads as, which is what the caller wants, and no Rust reference points into it.
        unsafe { rustix::mm::madvise(region.as_ptr().cast(), len, rustix::mm::Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// Gives `pages` back to the host. They read as what memory was mapped from (zero, or a snapshot's file) until the guest or a
/// device writes there again; the guest may be running.
///
/// # Errors
/// When madvise(2) refuses.
pub fn release(memory: &GuestMemory, pages: Range<u64>) -> std::io::Result<()> {
    for (address, len) in host_parts(memory, pages) {
        // SAFETY: the range lies in a region's own mapping, which `memory` keeps alive, and is private. A vCPU or a
        // device (through volatile slices) that accesses it meanwhile faults a page in again: memory that the guest
        // declared to be free may have either content. No Rust reference points into it.
        unsafe { rustix::mm::madvise(address.cast(), len, rustix::mm::Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// Registers every region of `memory` as a memslot of `vm`, slot numbers ascending from 0. To be called before
/// KVM_CREATE_IRQCHIP: after it each call waits for a grace period of several milliseconds.
///
/// # Errors
/// [`MemoryError::Slot`].
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let description = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a live mapping of exactly this length that `memory` owns, and the machine keeps
        // `memory` until after its VmFd is closed; regions of one GuestMemory do not overlap.
        unsafe { vm.set_user_memory_region(description) }.map_err(|source| MemoryError::Slot {
            address: description.guest_phys_addr,
            len: description.memory_size,
            source,
        })?;
    }
    Ok(())
}
