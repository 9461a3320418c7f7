//! The lock under which a sandbox's disk and memory files are changed.

use crate::home::{
    directory::{DirectoryError, SandboxDirectory},
    flock::Sharing,
    locks::{FileLock, LockClass},
};
use rustix::fs::{Mode, OFlags};
use std::{fs::File, time::Duration};

const CHANGE_LOCK: &str = "change.lock";
const POLL: Duration = Duration::from_millis(10);

/// The lock that a process holds while it snapshots, forks, flattens or resets a sandbox.
#[derive(Debug)]
pub(crate) struct ChangeLock(#[expect(dead_code, reason = "held for its lock")] FileLock);

impl ChangeLock {
    /// Waits until no other process changes the sandbox. Cancel safe.
    pub(crate) async fn take(directory: &SandboxDirectory) -> Result<Self, DirectoryError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory.fd(), CHANGE_LOCK, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| directory.error("open", CHANGE_LOCK, error))?;
        FileLock::wait_async(LockClass::Change, Sharing::Exclusive, File::from(file), POLL)
            .await
            .map(Self)
            .map_err(|error| directory.error("lock", CHANGE_LOCK, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changes_wait_for_each_other() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let first = ChangeLock::take(&directory).await.unwrap();
        // In another task, because a task that holds the lock must not wait for it.
        let mut second = tokio::spawn(async move { ChangeLock::take(&directory).await.map(drop) });
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err());
        drop(first);
        second.await.unwrap().unwrap();
    }
}
