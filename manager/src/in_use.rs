//! Whether somebody uses a sandbox that has an idle rule, and pausing it when nobody does.
//!
//! ```text
//! use          flock: shared by everybody connected to the agent, exclusive by the supervisor while it pauses or ends
//!              the sandbox. Content: when the last use began or ended (CLOCK_BOOTTIME, milliseconds)
//! idle.paused  empty; the supervisor paused the machine, and the next use resumes it. flock: by whoever does
//! ```
//! A user takes its lock first and looks for the mark then; the supervisor pauses only while it has the lock alone. So a
//! machine is never paused under its user, and no user finds it paused and leaves it so. A kill -9 of either lets go of
//! the lock, and a mark that is left says what is still to be done. Sandboxes without an idle rule have no such file, and
//! cost one look for it.

use crate::{
    clock,
    control::{ControlClient, ControlError},
    directory::{DirectoryError, SandboxDirectory},
    state::{self, State},
};
use rustix::fs::{FlockOperation, OFlags, flock};
use sandboxvm_protocol::vmm::ControlRequest;
use std::{fs::File, os::unix::fs::FileExt, time::Duration};
use tokio::time::{Instant, sleep};

const USE: &str = "use";
const PAUSED: &str = "idle.paused";
/// Ending a sandbox in order takes this long at most, pausing it some milliseconds.
const FREE_WITHIN: Duration = Duration::from_secs(35);
const POLL: Duration = Duration::from_millis(2);
/// Digits of 2^64.
const STAMP: usize = 20;

/// Why a sandbox cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum InUseError {
    /// Its supervisor does not let go of it.
    #[error("the supervisor of the sandbox has been pausing or ending it for {} s", FREE_WITHIN.as_secs())]
    Busy,
    /// It was paused for being idle and does not resume.
    #[error("cannot resume the sandbox, which was paused because it was idle: {0}")]
    Resume(#[from] ControlError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Somebody is using the sandbox, as long as this lives.
#[derive(Debug)]
pub(crate) struct InUse(File);

impl InUse {
    /// Begins to use it, and resumes it when it was paused for being idle. `None` where there is no idle rule.
    pub(crate) async fn begin(directory: &SandboxDirectory) -> Result<Option<Self>, InUseError> {
        let Some(file) = open(directory, USE)? else { return Ok(None) };
        let deadline = Instant::now() + FREE_WITHIN;
        while !try_lock(directory, &file, USE, FlockOperation::NonBlockingLockShared)? {
            if Instant::now() >= deadline {
                return Err(InUseError::Busy);
            }
            sleep(POLL).await;
        }
        let in_use = Self(file);
        in_use.stamp();
        wake(directory).await?;
        Ok(Some(in_use))
    }

    /// A file that cannot be written leaves it to the supervisor, which looks for users now and then.
    fn stamp(&self) {
        let _ = self.0.write_all_at(format!("{:0STAMP$}", clock::since_boot().as_millis()).as_bytes(), 0);
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.stamp();
    }
}

/// Resumes a machine that was paused for being idle. The caller keeps it in use.
async fn wake(directory: &SandboxDirectory) -> Result<(), InUseError> {
    let Some(mark) = open(directory, PAUSED)? else { return Ok(()) };
    let deadline = Instant::now() + FREE_WITHIN;
    while !try_lock(directory, &mark, PAUSED, FlockOperation::NonBlockingLockExclusive)? {
        if Instant::now() >= deadline {
            return Err(InUseError::Busy);
        }
        sleep(POLL).await;
    }
    // Another may have done it while this one waited.
    if directory.has(PAUSED) {
        // One that ended meanwhile, or that somebody reset, is not to be resumed.
        if state::read(directory)? == State::Paused {
            ControlClient::connect(directory).await?.ask(ControlRequest::Resume).await?;
        }
        directory.unlink(PAUSED)?;
    }
    Ok(())
}

/// True while the machine stands because nobody used it.
pub(crate) fn is_idle_paused(directory: &SandboxDirectory) -> bool {
    directory.has(PAUSED)
}

/// From now on it stands because somebody wants that: using it does not resume it.
pub(crate) fn stay_paused(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    directory.unlink(PAUSED)
}

/// Has uses of the sandbox be noticed from now on.
pub(crate) fn watch(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    if !directory.has(USE) {
        InUse(directory.create_file(USE)?).stamp();
    }
    Ok(())
}

/// Nobody uses the sandbox, and nobody can begin to, as long as this lives.
#[derive(Debug)]
pub(crate) struct Unused(File);

impl Unused {
    /// `None` while it is in use.
    pub(crate) fn try_begin(directory: &SandboxDirectory) -> Result<Option<Self>, DirectoryError> {
        let file = directory.open_file(USE, OFlags::RDWR)?;
        let free = try_lock(directory, &file, USE, FlockOperation::NonBlockingLockExclusive)?;
        Ok(free.then_some(Self(file)))
    }

    /// When it was used last, as far as users said so; since boot.
    pub(crate) fn last_use(&self) -> Duration {
        let mut stamp = [0; STAMP];
        let read = self.0.read_exact_at(&mut stamp, 0).ok();
        let text = read.and_then(|()| std::str::from_utf8(&stamp).ok());
        // Of a host's boot before this one, maybe; a machine does not survive that.
        text.and_then(|text| text.parse().ok()).map_or(Duration::ZERO, Duration::from_millis)
    }

    /// Pauses the machine until it is used again.
    pub(crate) async fn pause(&self, directory: &SandboxDirectory) -> Result<(), InUseError> {
        // The mark first: whoever comes after a kill -9 in between finds a machine that runs, and just takes it away.
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

fn try_lock(
    directory: &SandboxDirectory,
    file: &File,
    name: &str,
    how: FlockOperation,
) -> Result<bool, DirectoryError> {
    match flock(file, how) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(directory.error("lock", name, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::{CONTROL_SOCKET, STATUS},
        lock,
        wire::{self, FrameReader},
    };
    use sandboxvm_protocol::{
        machine::HostMode,
        vmm::{ControlReply, MAX_MESSAGE, Phase, VmStatus, VmmMessage, WIRE},
    };

    fn directory() -> (tempfile::TempDir, SandboxDirectory) {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        (home, directory)
    }

    fn say(directory: &SandboxDirectory, phase: Phase) {
        let status =
            VmStatus { pid: 1, phase, host_mode: HostMode::Vmx, reason: None, missing: Vec::new(), clocks_jump: false };
        directory.replace(STATUS, &serde_json::to_vec(&status).unwrap()).unwrap();
    }

    /// Does what it is asked, and says so; the value counts how often.
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
    async fn a_sandbox_without_an_idle_rule_is_not_looked_after() {
        let (_home, directory) = directory();
        assert!(InUse::begin(&directory).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn nobody_is_paused_while_in_use_and_the_next_use_resumes() {
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
        // Whoever comes now waits for the supervisor, and then resumes it; of two, one does.
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
    async fn one_that_its_user_paused_stays_so() {
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
    async fn a_mark_that_outlived_its_machine_is_no_hindrance() {
        let (_home, directory) = directory();
        watch(&directory).unwrap();
        directory.create_file(PAUSED).unwrap();
        assert!(InUse::begin(&directory).await.unwrap().is_some());
        assert!(!is_idle_paused(&directory));
    }
}
