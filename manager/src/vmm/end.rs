//! Ends a VMM from outside, with everything that it started. It is asked over its control socket
//! first, and killed if that takes too long. The VMM controls both its answer and its lock, so
//! neither proves that it has ended: only an empty control group does, or, if it has none, that no
//! process of its family is found any more. Every way in which a sandbox ends uses this module.

use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::Home,
    },
    vmm::{control::ControlClient, family, group::Group, lock, state},
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::{ids::SandboxId, vmm::ControlRequest};
use std::{thread, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Maximum time until a VMM releases its lock once it ends. Teardown takes some 15 ms, and more on
/// a loaded host.
pub(crate) const NOTICE_WITHIN: Duration = Duration::from_secs(1);
/// Maximum time after SIGKILL, when only the kernel is left to wait for.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
pub(crate) const POLL: Duration = Duration::from_millis(2);

/// Why a VMM did not end.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// Neither a request nor SIGKILL ended the VMM.
    #[error(
        "cannot end sandbox {0}: its VMM cannot be signalled (it belongs to another user or is stuck in the kernel)"
    )]
    Stuck(SandboxId),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// The VMM of a sandbox and everything that it started, no matter which of them holds its lock.
#[derive(Debug)]
pub(crate) struct Remains<'a> {
    home: &'a Home,
    directory: &'a SandboxDirectory,
    group: Option<Group>,
}

impl<'a> Remains<'a> {
    pub(crate) fn of(home: &'a Home, directory: &'a SandboxDirectory) -> Self {
        Self { home, directory, group: Group::of(directory) }
    }

    /// Returns true while any of these processes exists.
    pub(crate) fn exist(&self) -> bool {
        match &self.group {
            Some(group) => group.is_populated(),
            None => !family::of(self.home, self.directory).is_empty(),
        }
    }

    /// Kills all of these processes. Does nothing if there are none. Returns before they have
    /// ended.
    pub(crate) fn kill(&self) {
        match &self.group {
            // A process that cannot be killed is noticed because it still exists.
            Some(group) => drop(group.kill()),
            None => {
                for process in family::of(self.home, self.directory) {
                    // ESRCH: the process has ended meanwhile.
                    let _ = process.kill();
                }
            }
        }
    }

    /// Like [`Self::kill`], for processes that may have been started since. A group needs no second
    /// kill: it ends as a whole, including what it starts meanwhile.
    fn kill_again(&self) {
        if self.group.is_none() {
            self.kill();
        }
    }

    /// Waits until all of these processes have ended. Returns false if they have not within the
    /// given time.
    pub(crate) fn gone_within(&self, within: Duration) -> bool {
        let deadline = std::time::Instant::now() + within;
        while self.exist() {
            if std::time::Instant::now() >= deadline {
                return false;
            }
            self.kill_again();
            thread::sleep(POLL);
        }
        true
    }
}

/// Ends the VMM of `directory` now, with everything that it started. Returns false if there was
/// nothing to end. Otherwise returns when the lock is free and, where processes can be observed,
/// all of them have ended.
pub(crate) fn now<'a>(
    home: &'a Home,
    directory: &'a SandboxDirectory,
    id: &'a SandboxId,
) -> BoxFuture<'a, Result<bool, EndError>> {
    Box::pin(async move {
        let remains = Remains::of(home, directory);
        if lock::try_exclude_vmm(directory)?.is_some() {
            if !remains.exist() {
                return Ok(false);
            }
        } else {
            ask(directory).await?;
        }
        // A VMM of an older build has no record of its process, and only its lock identifies it.
        let mut holder = lock::find_holder(directory, hint(directory)?);
        remains.kill();
        let deadline = Instant::now() + KILLED_WITHIN;
        loop {
            let free = lock::try_exclude_vmm(directory)?.is_some();
            let left = remains.exist();
            if free && !left && holder.as_ref().is_none_or(|holder| !holder.is_alive()) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Err(EndError::Stuck(id.clone()));
            }
            remains.kill_again();
            if !left {
                if !free && holder.as_ref().is_none_or(|holder| !holder.is_alive()) {
                    // A process that the VMM started has the same lock.
                    holder = lock::find_holder(directory, None);
                }
                if let Some(holder) = &holder {
                    // ESRCH: the process has ended meanwhile. Any other error shows in the lock.
                    let _ = holder.kill();
                }
            }
            sleep(POLL).await;
        }
    })
}

/// Asks the VMM to end, so that it can report why it did.
async fn ask(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    let stop = async { ControlClient::connect(directory).await?.ask(ControlRequest::Stop).await };
    if timeout(NOTICE_WITHIN, stop).await.is_ok() {
        gone_within(directory, NOTICE_WITHIN).await?;
    }
    Ok(())
}

/// Returns the PID of the VMM as reported by the VMM.
fn hint(directory: &SandboxDirectory) -> Result<Option<u32>, DirectoryError> {
    Ok(state::status(directory)?.map(|status| status.pid))
}

/// Waits until the lock is free. Returns false if it is not within the given time.
pub(crate) async fn gone_within(directory: &SandboxDirectory, within: Duration) -> Result<bool, DirectoryError> {
    let deadline = Instant::now() + within;
    while lock::try_exclude_vmm(directory)?.is_none() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(POLL).await;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::directory::CONTROL_SOCKET;
    use std::{
        os::unix::process::{CommandExt, ExitStatusExt},
        process::{Command, Stdio},
    };

    /// This VMM holds its lock and does not answer.
    #[tokio::test]
    async fn silent_vmm_is_killed() {
        let home = tempfile::tempdir().unwrap();
        let home = Home::open(home.path()).unwrap();
        let directory = SandboxDirectory::create(home.root().join("x")).unwrap();
        let id = SandboxId::try_from("abcdefgh".to_owned()).unwrap();
        let _listener = directory.listen(CONTROL_SOCKET).unwrap();
        let lock = lock::create(&directory).unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(lock)).process_group(0).spawn().unwrap();
        assert!(!gone_within(&directory, Duration::ZERO).await.unwrap());
        assert!(now(&home, &directory, &id).await.unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(gone_within(&directory, Duration::ZERO).await.unwrap());
        assert!(!now(&home, &directory, &id).await.unwrap());
    }
}
