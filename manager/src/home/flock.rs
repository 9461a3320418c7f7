//! flock(2), with the results that callers act on. Only `locks`, which names the locks, and the
//! claim of a directory may call this.

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{io, os::fd::AsFd};

/// Whether a lock excludes other holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Any number of shared holders.
    Shared,
    /// One holder.
    Exclusive,
}

/// Takes a file's lock if that is possible now. The lock lives as long as the open file
/// description, which the caller may hand to another process. Returns false while another holder
/// excludes it.
pub(crate) fn try_take(sharing: Sharing, file: impl AsFd) -> io::Result<bool> {
    let how = match sharing {
        Sharing::Shared => FlockOperation::NonBlockingLockShared,
        Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(file, how) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Blocks the thread until the lock is taken.
pub(crate) fn wait(sharing: Sharing, file: impl AsFd) -> io::Result<()> {
    let how = match sharing {
        Sharing::Shared => FlockOperation::LockShared,
        Sharing::Exclusive => FlockOperation::LockExclusive,
    };
    loop {
        match flock(&file, how) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
