//! Page geometry: how many pages guest memory has, and where each is in this process.
//!
//! Pages are numbered over all memory regions in ascending order, without the MMIO hole between them.

use super::GuestMemory;
use std::ops::Range;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Pages of all of `memory`.
#[must_use]
pub fn page_count(memory: &GuestMemory) -> u64 {
    memory.iter().map(|region| region.len() / PAGE).sum()
}

/// Cuts a range of pages where memory regions end, so that each part is one stretch of host addresses.
#[must_use]
pub fn split_at_regions(memory: &GuestMemory, pages: Range<u64>) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut base = 0;
    for region in memory.iter() {
        let end = base + region.len() / PAGE;
        let part = pages.start.max(base)..pages.end.min(end);
        if !part.is_empty() {
            parts.push(part);
        }
        base = end;
    }
    parts
}

/// Host address of `page`.
#[must_use]
pub fn host_address(memory: &GuestMemory, page: u64) -> Option<*mut u8> {
    let mut base = 0;
    for region in memory.iter() {
        let count = region.len() / PAGE;
        if page < base + count {
            let offset = usize::try_from((page - base) * PAGE).ok()?;
            return Some(region.as_ptr().wrapping_add(offset));
        }
        base += count;
    }
    None
}

/// Where `pages` are in this process: address and length in bytes of each stretch. Pages beyond memory are left out.
#[must_use]
pub fn host_parts(memory: &GuestMemory, pages: Range<u64>) -> Vec<(*mut u8, usize)> {
    split_at_regions(memory, pages)
        .into_iter()
        .filter_map(|part| {
            let len = usize::try_from((part.end - part.start) * PAGE).ok()?;
            Some((host_address(memory, part.start)?, len))
        })
        .collect()
}

/// The host addresses of all of `memory`, as ranges with the number of their first page.
#[must_use]
pub fn host_ranges(memory: &GuestMemory) -> Vec<(Range<u64>, u64)> {
    let mut base = 0;
    memory
        .iter()
        .map(|region| {
            let start = region.as_ptr() as u64;
            let first = base;
            base += region.len() / PAGE;
            (start..start + region.len(), first)
        })
        .collect()
}

/// The content of `pages`, which lie in one region (see [`split_at_regions`]).
pub(crate) fn with_pages<T>(
    memory: &GuestMemory,
    pages: Range<u64>,
    mut use_bytes: impl FnMut(u64, &[u8]) -> T,
) -> Vec<T> {
    split_at_regions(memory, pages)
        .into_iter()
        .filter_map(|part| {
            let address = host_address(memory, part.start)?;
            let len = usize::try_from((part.end - part.start) * PAGE).ok()?;
            // SAFETY: the part lies in one region of `memory`, so these bytes are mapped and stay so for the call. It
            // is only called in the snapshot writer's process, which has a copy of memory that no vCPU or device
            // thread writes to.
            let bytes = unsafe { std::slice::from_raw_parts(address, len) };
            Some(use_bytes(part.start, bytes))
        })
        .collect()
}
