//! Space in a home's file system that is reserved before a step that cannot be undone, and released
//! for that step: an operation that would fail for lack of space fails before the step.
//!
//! Other processes may use the space in the moment between. The reservation makes that rare, not
//! impossible.

use crate::home::directory::{DirectoryError, SandboxDirectory};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::fs::File;

/// Space in bytes that a machine uses until its guest runs: records, the header of a layer, the
/// VMM's status and the first lines of its logs, each of which uses at least one block.
const OF_A_START: u64 = 256 * 1024;

/// A reservation. It ends when the value is dropped or the process ends, because the file has no
/// name.
#[derive(Debug)]
pub(crate) struct DiskReservation(#[expect(dead_code, reason = "held for its blocks")] Option<File>);

impl DiskReservation {
    /// Reserves the space that starting a machine in `directory` needs besides the guest's writes.
    /// Reserves nothing on a file system without unnamed files or without a way to allocate blocks.
    ///
    /// # Errors
    /// When there is not enough space.
    pub(crate) fn for_a_start(directory: &SandboxDirectory) -> Result<Self, DirectoryError> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory.fd(), ".", flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => file,
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => return Ok(Self(None)),
            Err(error) => return Err(directory.error("reserve room in", "", error)),
        };
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, OF_A_START) {
            Ok(()) => Ok(Self(Some(file.into()))),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(Self(None)),
            Err(error) => Err(directory.error("reserve room in", "", error)),
        }
    }
}
