//! What tracking of written memory asks of the kernel, by number: what the system call filter lets through is what
//! [`crate::snapshot::tracking`] calls.

use rustix::mm::UserfaultfdFlags;

/// Only faults of this process's user mode may be handled through the descriptor, and the VMM handles none. The kernel
/// resolves all faults here by itself, KVM's included. (`UFFD_USER_MODE_ONLY`.)
pub(crate) const USERFAULTFD_FLAGS: u32 = UserfaultfdFlags::CLOEXEC.bits() | 1;

/// `UFFDIO_API`.
pub(crate) const UFFDIO_API: u32 = 0xc018_aa3f;
/// `UFFDIO_REGISTER`.
pub(crate) const UFFDIO_REGISTER: u32 = 0xc020_aa00;
/// `PAGEMAP_SCAN`.
pub(crate) const PAGEMAP_SCAN: u32 = 0xc060_6610;

/// Every ioctl of the above.
pub(super) const ALL: [u32; 3] = [UFFDIO_API, UFFDIO_REGISTER, PAGEMAP_SCAN];
