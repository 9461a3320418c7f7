//! Tracks whether a sandbox with an idle rule is in use, and pauses it when it is not.
//!
//! ```text
//! use          flock: shared by every client connected to the agent, exclusive by the supervisor
//!              while it pauses or ends the sandbox. Content: when the last use began or ended
//!              (CLOCK_BOOTTIME, milliseconds)
//! idle.paused  empty; the supervisor paused the machine, and the next use resumes it. flock: by
//!              the client that resumes it
//! ```
//! A client takes its lock first and checks for the mark then; the supervisor pauses only while it
//! holds the lock exclusively. So a machine is never paused while a client uses it, and no client
//! finds it paused and leaves it paused. A kill -9 of either releases the lock, and a mark that is
//! left shows what is still to be done. Sandboxes without an idle rule have no such file, and the
//! check for it is all they cost.

use crate::{
    clock,
    home::{
        directory::{DirectoryError, SandboxDirectory},
        flock::Sharing,
        locks::{FileLock, LockClass},
    },
    vmm::{
        control::{ControlClient, ControlError},
        state::{self, State},
    },
};
use futures_util::future::BoxFuture;
use rustix::fs::OFlags;
use sandboxvm_protocol::vmm::ControlRequest;
use std::{fs::File, os::unix::fs::FileExt, time::Duration};

const USE: &str = "use";
const PAUSED: &str = "idle.paused";
/// Maximum time to wait for the supervisor. Stopping a sandbox gracefully takes at most this long,
/// pausing it some milliseconds.
const FREE_WITHIN: Duration = Duration::from_secs(35);
const POLL: Duration = Duration::from_millis(2);
/// Number of digits of 2^64.
const STAMP: usize = 20;

/// Why a sandbox cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum InUseError {
    /// The supervisor does not release the sandbox.
    #[error("the supervisor of the sandbox has been pausing or ending it for {} s", FREE_WITHIN.as_secs())]
    Busy,
    /// The idle rule paused the sandbox, and it cannot be resumed.
    #[error("cannot resume the sandbox, which was paused because it was idle: {0}")]
    Resume(#[from] ControlError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// A use of the sandbox, as long as this value lives.
#[derive(Debug)]
pub(crate) struct InUse(FileLock);

impl InUse {
    /// Starts a use, and resumes the sandbox if the idle rule paused it. Returns `None` if there is
    /// no idle rule.
    pub(crate) fn begin<'a>(directory: &'a SandboxDirectory) -> BoxFuture<'a, Result<Option<Self>, InUseError>> {
        Box::pin(async move {
            let Some(file) = open(directory, USE)? else { return Ok(None) };
            let lock = FileLock::wait_async_within(LockClass::Activity, Sharing::Shared, file, POLL, FREE_WITHIN);
            let in_use =
                Self(lock.await.map_err(|error| directory.error("lock", USE, error))?.ok_or(InUseError::Busy)?);
            in_use.stamp();
            wake(directory).await?;
            Ok(Some(in_use))
        })
    }

    /// Records the time. If the file cannot be written, the supervisor still notices users, which
    /// it looks for from time to time.
    fn stamp(&self) {
        stamp(self.0.file());
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.stamp();
    }
}

fn stamp(file: &File) {
    let _ = file.write_all_at(format!("{:0STAMP$}", clock::since_boot().as_millis()).as_bytes(), 0);
}

/// Resumes a machine that the idle rule paused. The caller keeps it in use.
async fn wake(directory: &SandboxDirectory) -> Result<(), InUseError> {
    let Some(mark) = open(directory, PAUSED)? else { return Ok(()) };
    let lock = FileLock::wait_async_within(LockClass::IdleResume, Sharing::Exclusive, mark, POLL, FREE_WITHIN);
    let _lock = lock.await.map_err(|error| directory.error("lock", PAUSED, error))?.ok_or(InUseError::Busy)?;
    // Another client may have resumed it while this one waited.
    if directory.has(PAUSED) {
        // A machine that ended or was reset meanwhile must not be resumed.
        if state::read(directory)? == State::Paused {
            ControlClient::connect(directory).await?.ask(ControlRequest::Resume).await?;
        }
        directory.unlink(PAUSED)?;
    }
    Ok(())
}

/// Returns true while the machine is paused by the idle rule.
pub(crate) fn is_idle_paused(directory: &SandboxDirectory) -> bool {
    directory.has(PAUSED)
}

/// Records that a user paused the machine: from now on, using it does not resume it.
pub(crate) fn stay_paused(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    directory.unlink(PAUSED)
}

/// Records uses of the sandbox from now on.
pub(crate) fn watch(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    if !directory.has(USE) {
        stamp(&directory.create_file(USE)?);
    }
    Ok(())
}

/// As long as this value lives, no client uses the sandbox, and none can start to.
#[derive(Debug)]
pub(crate) struct Unused(FileLock);

impl Unused {
    /// Returns `None` while the sandbox is in use.
    pub(crate) fn try_begin(directory: &SandboxDirectory) -> Result<Option<Self>, DirectoryError> {
        let file = directory.open_file(USE, OFlags::RDWR)?;
        let lock = FileLock::try_on(LockClass::Activity, Sharing::Exclusive, file);
        Ok(lock.map_err(|error| directory.error("lock", USE, error))?.map(Self))
    }

    /// Returns when the sandbox was last used, as far as clients recorded it, as time since boot.
    pub(crate) fn last_use(&self) -> Duration {
        let mut stamp = [0; STAMP];
        let read = self.0.file().read_exact_at(&mut stamp, 0).ok();
        let text = read.and_then(|()| std::str::from_utf8(&stamp).ok());
        // The time may be from an earlier boot of the host, but no machine survives a reboot.
        text.and_then(|text| text.parse().ok()).map_or(Duration::ZERO, Duration::from_millis)
    }

    /// Pauses the machine until it is used again.
    pub(crate) async fn pause(&self, directory: &SandboxDirectory) -> Result<(), InUseError> {
        // The mark comes first: after a kill -9 in between, the next client finds a running machine
        // and just removes the mark.
        if !directory.has(PAUSED) {
            directory.create_file(PAUSED)?;
        }
        let paused = async { ControlClient::connect(directory).await?.ask(ControlRequest::Pause).await };
        if let Err(error) = paused.await {
            directory.unlink(PAUSED)?;
            return Err(error.into());
        }
        Ok(())
    }
}

fn open(directory: &SandboxDirectory, name: &str) -> Result<Option<File>, DirectoryError> {
    match directory.open_file(name, OFlags::RDWR) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        home::directory::{CONTROL_SOCKET, STATUS},
        vmm::{
            lock,
            wire::{self, FrameReader},
        },
    };
    use sandboxvm_protocol::{
        machine::HostMode,
        vmm::{ControlReply, MAX_MESSAGE, Phase, VmStatus, VmmMessage, WIRE},
    };
    use tokio::time::sleep;

    fn directory() -> (tempfile::TempDir, SandboxDirectory) {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        (home, directory)
    }

    fn say(directory: &SandboxDirectory, phase: Phase) {
        let status = VmStatus {
            pid: 1,
            phase,
            host_mode: HostMode::Vmx,
            reason: None,
            missing: Vec::new(),
            clocks_jump: false,
            wire: 1,
        };
        directory.replace(STATUS, &serde_json::to_vec(&status).unwrap()).unwrap();
    }

    /// Carries out each request, and reports that it did.
    fn vmm(directory: &SandboxDirectory) -> tokio::task::JoinHandle<()> {
        let listener = directory.listen(CONTROL_SOCKET).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let directory = SandboxDirectory::open(directory.path().to_owned()).unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (reader, mut writer) = stream.into_split();
                let mut reader = FrameReader::new(reader, WIRE, MAX_MESSAGE);
                let request = reader.next_message::<ControlRequest>().await.unwrap();
                say(&directory, if request == ControlRequest::Pause { Phase::Paused } else { Phase::Ready });
                let done = VmmMessage::Reply(ControlReply::Done);
                wire::send(&mut writer, WIRE, &done, MAX_MESSAGE).await.unwrap();
            }
        })
    }

    #[tokio::test]
    async fn sandbox_without_an_idle_rule_is_not_tracked() {
        let (_home, directory) = directory();
        assert!(InUse::begin(&directory).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn sandbox_is_not_paused_while_in_use_and_the_next_use_resumes_it() {
        let (_home, directory) = directory();
        let _lock = lock::create(&directory).unwrap();
        say(&directory, Phase::Ready);
        let vmm = vmm(&directory);
        watch(&directory).unwrap();
        let (first, second) = (InUse::begin(&directory).await.unwrap(), InUse::begin(&directory).await.unwrap());
        assert!(first.is_some() && Unused::try_begin(&directory).unwrap().is_none());
        drop((first, second));
        let before = clock::since_boot();
        let unused = Unused::try_begin(&directory).unwrap().unwrap();
        assert!(unused.last_use() <= before && before - unused.last_use() < Duration::from_secs(5));
        unused.pause(&directory).await.unwrap();
        assert_eq!(state::read(&directory).unwrap(), State::Paused);
        // A client that arrives now waits for the supervisor and then resumes the machine; of two
        // clients, one resumes it.
        let comers = [0, 1].map(|_| {
            let directory = SandboxDirectory::open(directory.path().to_owned()).unwrap();
            tokio::spawn(async move { InUse::begin(&directory).await.unwrap() })
        });
        sleep(Duration::from_millis(30)).await;
        assert!(comers.iter().all(|comer| !comer.is_finished()));
        drop(unused);
        for comer in comers {
            assert!(comer.await.unwrap().is_some());
        }
        assert_eq!(state::read(&directory).unwrap(), State::Running);
        assert!(!is_idle_paused(&directory));
        vmm.abort();
    }

    #[tokio::test]
    async fn sandbox_paused_by_a_user_stays_paused() {
        let (_home, directory) = directory();
        let _lock = lock::create(&directory).unwrap();
        say(&directory, Phase::Ready);
        let vmm = vmm(&directory);
        watch(&directory).unwrap();
        Unused::try_begin(&directory).unwrap().unwrap().pause(&directory).await.unwrap();
        stay_paused(&directory).unwrap();
        drop(InUse::begin(&directory).await.unwrap());
        assert_eq!(state::read(&directory).unwrap(), State::Paused);
        vmm.abort();
    }

    #[tokio::test]
    async fn stale_pause_mark_is_removed() {
        let (_home, directory) = directory();
        watch(&directory).unwrap();
        directory.create_file(PAUSED).unwrap();
        assert!(InUse::begin(&directory).await.unwrap().is_some());
        assert!(!is_idle_paused(&directory));
    }
}
