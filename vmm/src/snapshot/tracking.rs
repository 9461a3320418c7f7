//! Which pages of guest memory were written since the last snapshot, by the guest or by a device: asynchronous write
//! protection of userfaultfd(2), read and renewed in one step by PAGEMAP_SCAN
//! (Documentation/admin-guide/mm/pagemap.rst, "Pagemap Scan IOCTL").
//!
//! The kernel resolves the faults by itself: the VMM never reads the descriptor, and no vCPU ever waits for the VMM. Tracking
//! begins at a machine's first snapshot, so that a machine without snapshots pays nothing. A kernel before 6.7 does not have
//! it; then [`super::pagemap`] looks at everything written since the memory was mapped, and comparing takes longer.

use crate::confine::tracking_requests::{PAGEMAP_SCAN, UFFDIO_API, UFFDIO_REGISTER, USERFAULTFD_FLAGS};
use crate::memory::{
    GuestMemory,
    pages::{PAGE, host_ranges},
};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

/// `UFFD_API`, the only version there is.
const UFFD_API: u64 = 0xaa;
/// `UFFD_FEATURE_WP_ASYNC`.
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_REGISTER_MODE_WP`.
const MODE_WP: u64 = 1 << 1;
/// `PM_SCAN_WP_MATCHING`: protect again what is reported.
const WP_MATCHING: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: fail where memory is not tracked.
const CHECK_WPASYNC: u64 = 1 << 1;
/// `PAGE_IS_WRITTEN`.
const WRITTEN: u64 = 1 << 1;
/// `PAGE_IS_FILE`: still the snapshot's own page.
const FILE: u64 = 1 << 2;
/// Regions taken from the kernel at a time.
const REGIONS: usize = 512;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<Api>() == 24 && size_of::<Register>() == 32 && size_of::<Scan>() == 96);

/// Tracking that is under way. Dropping it ends it.
#[derive(Debug)]
pub struct WriteTracking {
    /// Keeps the protection alive.
    _uffd: OwnedFd,
}

impl WriteTracking {
    /// Tracks all of `memory` from now on. `pagemap` is this process's; the vCPUs must stand, so that what is written
    /// until now and what is written from now on are not mixed.
    ///
    /// # Errors
    /// Where the kernel cannot.
    pub fn begin(memory: &GuestMemory, pagemap: &File) -> io::Result<Self> {
        // SAFETY: the flags name no pointer; the descriptor it makes is owned by what is returned.
        let uffd = unsafe { userfaultfd(UserfaultfdFlags::from_bits_retain(USERFAULTFD_FLAGS)) }?;
        let mut api = Api { api: UFFD_API, features: FEATURE_WP_ASYNC, ioctls: 0 };
        // SAFETY: the structure is the one that this request reads and writes.
        unsafe { ioctl(uffd.as_raw_fd(), UFFDIO_API, &mut api) }?;
        for (addresses, _) in host_ranges(memory) {
            let len = addresses.end - addresses.start;
            let mut register = Register { start: addresses.start, len, mode: MODE_WP, ioctls: 0 };
            // SAFETY: as above; the range is a live mapping of guest memory, and protecting it asynchronously changes
            // nothing that an access to it can see.
            unsafe { ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, &mut register) }?;
        }
        let tracking = Self { _uffd: uffd };
        tracking.take(memory, pagemap)?;
        Ok(tracking)
    }

    /// Returns the ranges of page numbers, ascending and disjoint, that were written since tracking began or since the last
    /// call, and starts to track them again. The vCPUs must be paused.
    ///
    /// # Errors
    /// When the kernel does not say: what was written is not known then, and this must not be used any more.
    pub fn take(&self, memory: &GuestMemory, pagemap: &File) -> io::Result<Vec<Range<u64>>> {
        let mut written: Vec<Range<u64>> = Vec::new();
        let mut regions = vec![Region::default(); REGIONS];
        for (addresses, first) in host_ranges(memory) {
            let mut at = addresses.start;
            while at < addresses.end {
                let mut scan = Scan {
                    size: size_of::<Scan>() as u64,
                    flags: WP_MATCHING | CHECK_WPASYNC,
                    start: at,
                    end: addresses.end,
                    walk_end: 0,
                    regions: regions.as_mut_ptr() as u64,
                    regions_len: REGIONS as u64,
                    max_pages: 0,
                    category_inverted: FILE,
                    category_mask: WRITTEN | FILE,
                    category_anyof_mask: 0,
                    return_mask: WRITTEN,
                };
                // SAFETY: the structure is the one that this request reads and writes; the regions it points to are a
                // live array of the stated length. It changes the protection of guest memory's pages only.
                let count = unsafe { ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &mut scan) }?;
                let count = usize::try_from(count).unwrap_or(0);
                for region in regions.get(..count).unwrap_or_default() {
                    let number = |address: u64| first + address.saturating_sub(addresses.start) / PAGE;
                    let pages = number(region.start)..number(region.end);
                    match written.last_mut() {
                        Some(last) if last.end == pages.start => last.end = pages.end,
                        _ => written.push(pages),
                    }
                }
                if scan.walk_end <= at {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the scan of written pages does not get on",
                    ));
                }
                at = scan.walk_end;
            }
        }
        Ok(written)
    }
}

/// ioctl(2) with a structure that the kernel reads and writes; returns what it returned.
///
/// # Safety
/// `argument` must be the structure that `request` takes, and whatever it points to must be valid for the call.
unsafe fn ioctl<T>(fd: RawFd, request: u32, argument: &mut T) -> io::Result<i64> {
    // SAFETY: by this function's own contract. As a plain system call, because C libraries differ in the request's type.
    match unsafe { libc::syscall(libc::SYS_ioctl, fd, u64::from(request), std::ptr::from_mut(argument)) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{memory_map::MemoryMap, pagemap};
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    fn write(memory: &GuestMemory, page: u64) {
        memory.write_slice(&[7], GuestAddress(page * PAGE)).unwrap();
    }

    #[test]
    fn what_is_written_is_found_once_in_fresh_and_in_mapped_memory() {
        let own = File::open("/proc/self/pagemap").unwrap();
        let fresh =
            GuestMemory::from_ranges(&[(GuestAddress(0), 64 << 12), (GuestAddress(1 << 20), 64 << 12)]).unwrap();
        let mapped =
            GuestMemory::from_ranges(&[(GuestAddress(0), 64 << 12), (GuestAddress(1 << 20), 64 << 12)]).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(128 * PAGE).unwrap();
        MemoryMap::whole(128, 0).map_over(&mapped, &[Arc::new(file)]).unwrap();
        for memory in [fresh, mapped] {
            write(&memory, 3);
            let tracking = WriteTracking::begin(&memory, &own).unwrap();
            assert_eq!(tracking.take(&memory, &own).unwrap(), [], "written before");
            write(&memory, 3);
            write(&memory, 9);
            write(&memory, 10);
            memory.write_slice(&[1], GuestAddress((1 << 20) + 5 * PAGE)).unwrap();
            // Reading is not writing.
            memory.read_slice(&mut [0], GuestAddress(20 * PAGE)).unwrap();
            assert_eq!(tracking.take(&memory, &own).unwrap(), [3..4, 9..11, 69..70]);
            assert_eq!(tracking.take(&memory, &own).unwrap(), [], "taken already");
            write(&memory, 9);
            assert_eq!(tracking.take(&memory, &own).unwrap().as_slice(), std::slice::from_ref(&(9..10)));
            // What a child process writes to its copy is not ours.
            // SAFETY: the child writes to memory and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                write(&memory, 30);
                // SAFETY: ends the child, which shares nothing but files.
                unsafe { libc::_exit(0) };
            }
            // SAFETY: our own child, no status wanted.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            write(&memory, 31);
            assert_eq!(tracking.take(&memory, &own).unwrap().as_slice(), std::slice::from_ref(&(31..32)));
            assert!(pagemap::written_pages(&own, &memory).unwrap().iter().any(|range| range.contains(&31)));
        }
    }
}
