//! Starts the process of a VMM and hands it its machine: one frame with every open file, over a
//! socket that is the VMM's standard input and stays open as its launch channel.
//!
//! The VMM may not receive an argument, an environment or a path: it opens nothing but /dev/kvm
//! itself. The first thing it does is to make its own session, because Ctrl-C on a terminal is not
//! meant for it; doing that here would require fork(2) instead of vfork(2).

use crate::vmm::{
    control::ControlClient,
    descriptors::{LaunchError, LaunchFiles},
    group::Group,
    pidfd::Pidfd,
    spawn::{Spawned, Streams, spawn},
};
use rustix::process::{Pid, WaitOptions, waitpid};
use sandboxvm_protocol::vmm::LaunchConfig;
use std::{
    fs::File,
    io,
    os::unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    time::Instant,
};
use tokio::{net::UnixStream, sync::watch};

/// The process of a VMM that this process started. Dropping the value kills the VMM unless
/// [`Self::let_go`] was called.
#[derive(Debug)]
pub(crate) struct VmmProcess {
    pub(crate) channel: ControlClient,
    pidfd: Pidfd,
    exited: watch::Receiver<Option<ExitStatus>>,
    kill_on_drop: bool,
    /// PID of the VMM, valid as long as it is not reaped.
    pub(crate) pid: Pid,
    /// True if the VMM is in the control group that was chosen for it.
    pub(crate) is_in_group: bool,
    /// When the process was requested.
    pub(crate) spawned_at: Instant,
}

impl VmmProcess {
    /// Starts `program` in `group`, with `log` as its stderr. The process leaves the host while
    /// this process continues, and then waits for its machine.
    pub(crate) fn spawn(program: &Path, log: File, group: Option<&Group>) -> Result<Self, LaunchError> {
        let spawned_at = Instant::now();
        let (ours, theirs) = StdUnixStream::pair()?;
        let Spawned { pid, is_in_group } =
            spawn(program, None, Streams { input: theirs.into(), output: None, log: log.into() }, group)
                .map_err(|source| LaunchError::Spawn { path: program.to_owned(), source })?;
        ours.set_nonblocking(true)?;
        let channel = ControlClient::over(UnixStream::from_std(ours)?);
        let pidfd = Pidfd::open(pid)?;
        let exited = reap(pid, pidfd.try_clone()?);
        Ok(Self { channel, pidfd, exited, kill_on_drop: true, pid, is_in_group, spawned_at })
    }

    /// Hands the VMM `config` with `files` in one message, and returns immediately. The fate of the
    /// machine arrives as events on the channel; if the VMM has ended already, the channel ends.
    pub(crate) fn hand_over(&self, config: &LaunchConfig, files: &LaunchFiles<'_>) -> Result<(), LaunchError> {
        match self.channel.send_with(config, files) {
            Err(LaunchError::Channel(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent,
        }
    }

    /// Lets the VMM outlive this value and this process.
    pub(crate) fn let_go(mut self) {
        self.kill_on_drop = false;
    }

    /// Sends SIGKILL. Does nothing if the VMM has ended already.
    pub(crate) fn kill(&self) {
        // ESRCH is the only possible failure: the pidfd is of our own child.
        let _ = self.pidfd.kill();
    }

    /// Waits until the process has ended and its files and locks are released. Cancel safe.
    pub(crate) async fn wait(&mut self) -> Option<ExitStatus> {
        self.exited.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        if self.kill_on_drop {
            self.kill();
        }
    }
}

/// Waits for the child in a separate task, so that no zombie stays whatever happens to the value
/// that stands for it.
pub(crate) fn reap(pid: Pid, pidfd: Pidfd) -> watch::Receiver<Option<ExitStatus>> {
    let (told, exited) = watch::channel(None);
    tokio::spawn(async move {
        // The wait after this does not block, and the PID belongs to the child until then.
        if pidfd.ended().await.is_ok() {
            let status = waitpid(Some(pid), WaitOptions::empty()).ok().flatten();
            told.send_replace(status.map(|(_, status)| ExitStatus::from_raw(status.as_raw())));
        }
    });
    exited
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::descriptors::tests::config;
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
        path::PathBuf,
        time::Duration,
    };

    fn program(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("vmm");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn vmm_has_no_environment_and_stderr_goes_to_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "echo $$ >&2; tr '\\0' '\\n' </proc/$$/environ >&2; exit 3");
        let log = File::create(dir.path().join("log")).unwrap();
        let mut vmm = VmmProcess::spawn(&path, log, None).unwrap();
        vmm.hand_over(&config(), &LaunchFiles::default()).unwrap();
        assert_eq!(vmm.wait().await.unwrap().code(), Some(3));
        assert!(vmm.channel.ready().await.is_err());
        let words = fs::read_to_string(dir.path().join("log")).unwrap();
        let lines: Vec<&str> = words.lines().collect();
        assert_eq!(lines.len(), 1, "PID and no environment: {words}");
    }

    #[tokio::test]
    async fn dropped_vmm_is_killed_and_detached_vmm_keeps_running() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "exec sleep 60");
        let launch = || {
            let log = File::create(dir.path().join("log")).unwrap();
            VmmProcess::spawn(&path, log, None).unwrap()
        };
        let vmm = launch();
        let mut exited = vmm.exited.clone();
        drop(vmm);
        let status = exited.wait_for(Option::is_some).await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(9));

        let vmm = launch();
        let (pidfd, mut exited) = (vmm.pidfd.try_clone().unwrap(), vmm.exited.clone());
        vmm.let_go();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(exited.borrow().is_none());
        pidfd.kill().unwrap();
        exited.wait_for(Option::is_some).await.unwrap();
    }

    #[tokio::test]
    async fn missing_program_is_named_in_the_error() {
        let log = tempfile::tempfile().unwrap();
        let error = VmmProcess::spawn(Path::new("/no/vmm"), log, None).unwrap_err();
        assert!(error.to_string().contains("/no/vmm"), "{error}");
    }
}
