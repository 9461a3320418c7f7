//! Directories that are being made, in `staging/`, where only their maker and sweeps look.

use crate::home::{
    directory::{DirectoryError, SandboxDirectory},
    flock::Sharing,
    layout::Home,
    locks::{FileLock, LockClass, directory_file},
};
use sandboxvm_protocol::identity::SandboxId;

/// Makes and claims `staging/<id>`. The lock on `staging/` keeps a sweep from finding the directory
/// before it is claimed.
pub(crate) fn new_staged(home: &Home, id: &SandboxId) -> Result<SandboxDirectory, DirectoryError> {
    let path = home.staging();
    let _lock = FileLock::wait(LockClass::Staging, Sharing::Shared, directory_file(&path)?)
        .map_err(|error| DirectoryError::new("lock", path, error))?;
    let directory = SandboxDirectory::create(home.staged(id))?;
    // No other process can have claimed a directory that was just made.
    directory.try_claim()?;
    Ok(directory)
}

/// Locks `staging/` against every maker, for a sweep. Returns `None` while a maker is about to
/// claim its directory.
pub(crate) fn try_lock(home: &Home) -> Result<Option<FileLock>, DirectoryError> {
    let path = home.staging();
    FileLock::try_on(LockClass::Staging, Sharing::Exclusive, directory_file(&path)?)
        .map_err(|error| DirectoryError::new("lock", path, error))
}
