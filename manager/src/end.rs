//! Ending a VMM from outside: asked over its control socket first, killed when that takes too long. The lock, not an
//! answer, says when it is over.

use crate::{
    control::ControlClient,
    directory::{DirectoryError, SandboxDirectory},
    lock, state,
};
use sandboxvm_protocol::{identity::SandboxId, vmm::ControlRequest};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a VMM may take to let go of its lock once it ends: teardown is some 15 ms, on a loaded host more.
pub(crate) const NOTICE_WITHIN: Duration = Duration::from_secs(1);
/// After SIGKILL only the kernel is left to wait for.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// Why a VMM did not end.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// Neither request nor SIGKILL ended it.
    #[error("sandbox {0} does not end: its VMM cannot be signalled (another user's, or stuck in the kernel)")]
    Stuck(SandboxId),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Ends the VMM of `directory` now; nothing happens when there is none. Returns when its lock is free and, where it can
/// be seen, its process gone.
pub(crate) async fn now(directory: &SandboxDirectory, id: &SandboxId) -> Result<(), EndError> {
    if lock::try_exclude_vmm(directory)?.is_some() {
        return Ok(());
    }
    // Found before anything is asked of it, so that it is waited for in the end however it went.
    let hint = state::status(directory)?.map(|status| status.pid);
    let holder = lock::find_holder(directory, hint);
    let stop = async { ControlClient::connect(directory).await?.ask(ControlRequest::Stop).await };
    let asked = timeout(NOTICE_WITHIN, stop).await;
    let mut gone = asked.is_ok() && gone_within(directory, NOTICE_WITHIN).await?;
    if !gone && let Some(holder) = &holder {
        // ESRCH: it went meanwhile. Anything else shows in the lock.
        let _ = holder.kill();
        gone = gone_within(directory, KILLED_WITHIN).await?;
    }
    if !gone {
        return Err(EndError::Stuck(id.clone()));
    }
    if let Some(holder) = holder {
        // Past its lock there is only the exit itself left.
        let _ = timeout(NOTICE_WITHIN, holder.ended()).await;
    }
    Ok(())
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
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let id = SandboxId::try_from("abcdefgh".to_owned()).unwrap();
        let _listener = directory.listen(CONTROL_SOCKET).unwrap();
        let lock = lock::create(&directory).unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(lock)).process_group(0).spawn().unwrap();
        assert!(!gone_within(&directory, Duration::ZERO).await.unwrap());
        now(&directory, &id).await.unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(gone_within(&directory, Duration::ZERO).await.unwrap());
        now(&directory, &id).await.unwrap();
    }
}
