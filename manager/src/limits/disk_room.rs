//! Room in a home's file system, taken before a step that cannot be taken back and given back for it: an operation that
//! would fail for want of room fails before that step.
//!
//! Other processes may take the room in the moment between; what is kept here makes that rare, not impossible.

use crate::home::directory::{DirectoryError, SandboxDirectory};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::fs::File;

/// For what a machine writes until its guest runs: records, a layer's header, the VMM's status and the first lines of its
/// logs, each of which takes a block at least.
const OF_A_START: u64 = 256 * 1024;

/// Held until it is dropped, or its process ends: the file has no name.
#[derive(Debug)]
pub(crate) struct Room(#[expect(dead_code, reason = "held for its blocks")] Option<File>);

impl Room {
    /// Takes the room that starting a machine in `directory` needs beside the guest's own writes. Nothing is taken on a
    /// file system that has no files without a name, or no way to allocate blocks.
    ///
    /// # Errors
    /// When there is less.
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
