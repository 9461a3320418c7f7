//! Starting a VMM process and handing it its machine: one frame with every open file, over a socket that is the VMM's
//! standard input and stays open as its launch channel.
//!
//! The VMM gets no argument, no environment and no path: it opens nothing but /dev/kvm itself. It makes a session of its
//! own first of all (a terminal's Ctrl-C is not for it); doing that here would take fork(2) instead of vfork(2).

use crate::vmm::{
    control::ControlClient,
    descriptors::{LaunchError, LaunchFiles},
    group::Group,
    pidfd::Pidfd,
    spawn::{Spawned, spawn},
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

/// A VMM process that this process started. Dropping it kills the VMM unless it was let go.
#[derive(Debug)]
pub(crate) struct VmmProcess {
    /// The launch channel.
    pub(crate) channel: ControlClient,
    pidfd: Pidfd,
    exited: watch::Receiver<Option<ExitStatus>>,
    kill_on_drop: bool,
    /// Its process, for as long as it is not reaped.
    pub(crate) pid: Pid,
    /// It is in the control group that it was given.
    pub(crate) is_in_group: bool,
    /// When it was asked for.
    pub(crate) spawned_at: Instant,
}

impl VmmProcess {
    /// Starts `program` in `group` with `log` as its stderr. It leaves the host meanwhile, and waits to be told its machine.
    pub(crate) fn spawn(program: &Path, log: File, group: Option<&Group>) -> Result<Self, LaunchError> {
        let spawned_at = Instant::now();
        let (ours, theirs) = StdUnixStream::pair()?;
        let Spawned { pid, is_in_group } = spawn(program, theirs.into(), log, group)
            .map_err(|source| LaunchError::Spawn { path: program.to_owned(), source })?;
        ours.set_nonblocking(true)?;
        let channel = ControlClient::over(UnixStream::from_std(ours)?);
        let pidfd = Pidfd::open(pid)?;
        let exited = reap(pid, pidfd.try_clone()?);
        Ok(Self { channel, pidfd, exited, kill_on_drop: true, pid, is_in_group, spawned_at })
    }

    /// Hands it `config` with `files`, in one message, and returns at once: what becomes of the machine comes as events
    /// on the channel, and of a VMM that is gone already as the channel's end.
    pub(crate) fn hand_over(&self, config: &LaunchConfig, files: &LaunchFiles<'_>) -> Result<(), LaunchError> {
        match self.channel.send_with(config, files) {
            Err(LaunchError::Channel(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent,
        }
    }

    /// Lets the VMM live on after this value, and after this process.
    pub(crate) fn let_go(mut self) {
        self.kill_on_drop = false;
    }

    /// Sends SIGKILL; nothing happens when it is gone already.
    pub(crate) fn kill(&self) {
        // ESRCH is the only failure that can be: the pidfd is of our own child.
        let _ = self.pidfd.kill();
    }

    /// Waits until the process is gone and its files and locks with it. Cancel safe.
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

/// A task of its own waits for the child, so that no zombie stays whatever becomes of the [`VmmProcess`].
fn reap(pid: Pid, pidfd: Pidfd) -> watch::Receiver<Option<ExitStatus>> {
    let (told, exited) = watch::channel(None);
    tokio::spawn(async move {
        // The wait after it does not block, and the number is the child's until then.
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
    async fn the_process_has_no_environment_and_its_words_in_the_log() {
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
    async fn a_dropped_vmm_is_killed_and_reaped_and_one_let_go_lives_on() {
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
    async fn a_missing_program_is_named() {
        let log = tempfile::tempfile().unwrap();
        let error = VmmProcess::spawn(Path::new("/no/vmm"), log, None).unwrap_err();
        assert!(error.to_string().contains("/no/vmm"), "{error}");
    }
}
