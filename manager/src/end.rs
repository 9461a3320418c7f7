//! Ending a VMM from outside, with everything that it started: asked over its control socket first, killed when that takes
//! too long. Neither its answer nor its lock says when it is over, since both are the VMM's to give: its control group is
//! empty, or where it has none, nothing is found of its family any more. Every way in which a sandbox ends leads here.

use crate::{
    control::ControlClient,
    directory::{DirectoryError, SandboxDirectory},
    family,
    group::Group,
    home::Home,
    lock, state,
};
use sandboxvm_protocol::{identity::SandboxId, vmm::ControlRequest};
use std::{thread, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// How long a VMM may take to let go of its lock once it ends: teardown is some 15 ms, on a loaded host more.
pub(crate) const NOTICE_WITHIN: Duration = Duration::from_secs(1);
/// After SIGKILL only the kernel is left to wait for.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
pub(crate) const POLL: Duration = Duration::from_millis(2);

/// Why a VMM did not end.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// Neither request nor SIGKILL ended it.
    #[error(
        "cannot end sandbox {0}: its VMM cannot be signalled (it belongs to another user or is stuck in the kernel)"
    )]
    Stuck(SandboxId),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Everything that a sandbox's VMM started, and itself, wherever its lock is.
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

    /// True while any process of it is there.
    pub(crate) fn exist(&self) -> bool {
        match &self.group {
            Some(group) => group.is_populated(),
            None => !family::of(self.home, self.directory).is_empty(),
        }
    }

    /// Ends all of it; nothing happens when there is nothing. Returns before it is gone.
    pub(crate) fn kill(&self) {
        match &self.group {
            // What cannot be ended shows by being there.
            Some(group) => drop(group.kill()),
            None => {
                for process in family::of(self.home, self.directory) {
                    // ESRCH: it went meanwhile.
                    let _ = process.kill();
                }
            }
        }
    }

    /// As [`Self::kill`], of what may have been started since. A group is ended as a whole, with what it starts meanwhile.
    fn kill_again(&self) {
        if self.group.is_none() {
            self.kill();
        }
    }

    /// Waits until all of it is gone. False when it is not in time.
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

/// Ends the VMM of `directory` now, with all that it started. False when there was nothing to end. Returns when its lock is free and,
/// where it can be seen, its processes gone.
pub(crate) async fn now(home: &Home, directory: &SandboxDirectory, id: &SandboxId) -> Result<bool, EndError> {
    let remains = Remains::of(home, directory);
    if lock::try_exclude_vmm(directory)?.is_some() {
        if !remains.exist() {
            return Ok(false);
        }
    } else {
        ask(directory).await?;
    }
    // A VMM made by an older build, of which nothing was written down, is known by its lock alone.
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
                // A process that it started, with the same lock.
                holder = lock::find_holder(directory, None);
            }
            if let Some(holder) = &holder {
                // ESRCH: it went meanwhile. Anything else shows in the lock.
                let _ = holder.kill();
            }
        }
        sleep(POLL).await;
    }
}

/// Asks the VMM to end, so that it can say why it did.
async fn ask(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    let stop = async { ControlClient::connect(directory).await?.ask(ControlRequest::Stop).await };
    if timeout(NOTICE_WITHIN, stop).await.is_ok() {
        gone_within(directory, NOTICE_WITHIN).await?;
    }
    Ok(())
}

/// Which process is the VMM, in its own words.
fn hint(directory: &SandboxDirectory) -> Result<Option<u32>, DirectoryError> {
    Ok(state::status(directory)?.map(|status| status.pid))
}

/// Waits for the lock to be free; false when it is not in time.
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
    use crate::directory::CONTROL_SOCKET;
    use std::{
        os::unix::process::{CommandExt, ExitStatusExt},
        process::{Command, Stdio},
    };

    /// A VMM that holds its lock and answers nothing.
    #[tokio::test]
    async fn a_vmm_that_does_not_answer_is_killed() {
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
