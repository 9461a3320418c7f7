//! fork(2) of the VMM, and closing the parent's descriptors in the child. Knows nothing of what the child is for.

use super::failure::kind_of;
use crate::confine;
use sandboxvm_protocol::vmm::RefusalKind;
use std::{io, os::fd::RawFd};

/// Why there is no child, or one that must not continue.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// fork(2).
    #[error("cannot fork the VMM's process: {0}; the host may be out of memory or processes")]
    Fork(io::Error),
    /// close_range(2).
    #[error("cannot close the descriptors of the VMM that was forked: {0}")]
    Close(io::Error),
}

impl SplitError {
    /// Returns the kind of refusal that a client receives.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        let (Self::Fork(source) | Self::Close(source)) = self;
        kind_of(source)
    }
}

/// Which process this is after [`split`].
#[derive(Debug)]
pub enum Side {
    /// The parent; the child's PID.
    Parent(u32),
    /// The child.
    Child,
}

/// fork(2).
///
/// # Errors
/// [`SplitError::Fork`].
pub fn split() -> Result<Side, SplitError> {
    // SAFETY: the child continues with this thread alone. The other threads are vCPU threads, standing at the run gate or,
    // where disk layers are merged, running. A running one may hold a device's lock or the allocator's: musl and glibc
    // take care of the latter across fork, and a writer takes no lock but those of disk layers, which only the thread
    // that forks ever holds. The child never touches the objects of the other threads.
    match unsafe { libc::fork() } {
        -1 => Err(SplitError::Fork(io::Error::last_os_error())),
        0 => {
            confine::report_nowhere();
            Ok(Side::Child)
        }
        pid => Ok(Side::Parent(pid.unsigned_abs())),
    }
}

/// Closes every descriptor that is not in `keep`.
pub(crate) fn close_all_but(keep: &[RawFd]) -> Result<(), SplitError> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        close_range(first, fd.checked_sub(1))?;
        first = first.max(fd + 1);
    }
    close_range(first, Some(u32::MAX))
}

fn close_range(first: u32, last: Option<u32>) -> Result<(), SplitError> {
    let Some(last) = last.filter(|last| *last >= first) else { return Ok(()) };
    // SAFETY: plain numbers. The descriptors belong to objects of the parent's that this process never uses again.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(SplitError::Close(io::Error::last_os_error())),
    }
}
