//! Directories that are being made, in `staging/`, where only their maker and the sweep look.

use crate::home::{
    directory::{DirectoryError, SandboxDirectory},
    layout::Home,
};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use sandboxvm_protocol::ids::SandboxId;
use std::os::fd::OwnedFd;

/// Makes and claims `staging/<id>`. The lock on `staging/` keeps a sweep from meeting it before it is claimed.
pub(crate) fn new_staged(home: &Home, id: &SandboxId) -> Result<SandboxDirectory, DirectoryError> {
    let _lock = lock(home, FlockOperation::LockShared)?;
    let directory = SandboxDirectory::create(home.staged(id))?;
    // A directory just made is claimed by nobody else.
    directory.try_claim()?;
    Ok(directory)
}

/// Locks `staging/` itself.
pub(crate) fn lock(home: &Home, how: FlockOperation) -> Result<OwnedFd, DirectoryError> {
    let path = home.staging();
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| flock(&fd, how).map(|()| fd))
        .map_err(|e| DirectoryError::new("lock", path, e))
}
