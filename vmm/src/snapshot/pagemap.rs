//! Which pages of guest memory are private to this process: those the guest or a device wrote since the memory was mapped.
//! Reads `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst), which is handed in open.

use crate::memory::{
    GuestMemory,
    pages::{PAGE, host_ranges},
};
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

/// Bytes of one entry.
const ENTRY: usize = 8;
/// Bit 63: in memory.
const PRESENT: u64 = 1 << 63;
/// Bit 62: in swap.
const SWAPPED: u64 = 1 << 62;
/// Bit 61: page of a file, or shared anonymous memory.
const FILE: u64 = 1 << 61;

/// Ranges of page numbers, ascending and disjoint, of the pages that are neither untouched nor still a file's.
///
/// # Errors
/// When pagemap cannot be read.
pub fn written_pages(pagemap: &File, memory: &GuestMemory) -> io::Result<Vec<Range<u64>>> {
    let mut written: Vec<Range<u64>> = Vec::new();
    let mut bytes = vec![0; 1 << 16];
    for (addresses, first) in host_ranges(memory) {
        let mut page = first;
        let last = first + (addresses.end - addresses.start) / PAGE;
        while page < last {
            let entries = usize::try_from(last - page).unwrap_or(usize::MAX).min(bytes.len() / ENTRY);
            let chunk = &mut bytes[..entries * ENTRY];
            let virtual_page = addresses.start / PAGE + (page - first);
            pagemap.read_exact_at(chunk, virtual_page * ENTRY as u64)?;
            for (number, entry) in (page..).zip(chunk.as_chunks::<ENTRY>().0) {
                if is_own(u64::from_ne_bytes(*entry)) {
                    match written.last_mut() {
                        Some(range) if range.end == number => range.end += 1,
                        _ => written.push(number..number + 1),
                    }
                }
            }
            page += entries as u64;
        }
    }
    Ok(written)
}

fn is_own(entry: u64) -> bool {
    entry & SWAPPED != 0 || (entry & PRESENT != 0 && entry & FILE == 0)
}
