//! A process of a sandbox beside its VMM, which a service or a fork starts. It is in the control group of its sandbox,
//! which ends it with the sandbox, and it is killed when its value is dropped.

use crate::{
    hostile_text::one_line,
    vmm::{
        group::Group,
        launch::reap,
        pidfd::Pidfd,
        spawn::{Spawned, Streams, spawn},
    },
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::{
    ffi::CStr,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    time::Duration,
};
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::watch, time::timeout};

/// Maximum size in bytes of the last words of a process that are shown.
const MAX_WORDS: u64 = 1024;
/// Maximum time to wait for the last words of a process that was killed or has ended.
const WORDS_WITHIN: Duration = Duration::from_millis(200);

/// A process.
#[derive(Debug)]
pub(crate) struct Child {
    /// What it is called in messages.
    name: &'static str,
    pidfd: Pidfd,
    exited: watch::Receiver<Option<ExitStatus>>,
    stderr: pipe::Receiver,
}

impl Child {
    /// Starts `program` with `input` as its standard input, and `output`, if there is one, as its standard
    /// output.
    pub(crate) fn spawn(
        name: &'static str,
        program: &Path,
        argument: Option<&CStr>,
        input: OwnedFd,
        output: Option<OwnedFd>,
        group: Option<&Group>,
    ) -> io::Result<Self> {
        let (stderr, words) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let Spawned { pid, .. } = spawn(program, argument, Streams { input, output, log: words }, group)?;
        let pidfd = Pidfd::open(pid)?;
        let exited = reap(pid, pidfd.try_clone()?);
        let stderr = pipe::Receiver::from_owned_fd(stderr)?;
        Ok(Self { name, pidfd, exited, stderr })
    }

    /// Kills the process and returns how it ended, with its last words.
    pub(crate) async fn end(mut self) -> String {
        // A process that has ended keeps its status.
        let _ = timeout(WORDS_WITHIN, self.exited.wait_for(Option::is_some)).await;
        let _ = self.pidfd.kill();
        let status = self.exited.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        let mut words = Vec::new();
        // Whatever was read until then is shown.
        let _ = timeout(WORDS_WITHIN, (&mut self.stderr).take(MAX_WORDS).read_to_end(&mut words)).await;
        let how = match status.map(|status| (status.signal(), status.code())) {
            Some((Some(signal), _)) => format!("was killed by signal {signal}"),
            Some((None, Some(code))) => format!("exited with {code}"),
            _ => "ended".to_owned(),
        };
        let words = String::from_utf8_lossy(&words);
        let words = words.trim();
        let words = if words.is_empty() { String::new() } else { format!(": {}", one_line(words)) };
        format!("the {} {how}{words}", self.name)
    }

    pub(crate) fn has_ended(&self) -> bool {
        !self.pidfd.is_alive()
    }

    /// Returns once the process has ended. Cancel safe.
    pub(crate) async fn ended(&mut self) {
        // An error means that the task that waits for it is gone, with the runtime.
        let _ = self.exited.wait_for(Option::is_some).await;
    }

    /// Returns true if the process has ended without an error.
    pub(crate) fn succeeded(&self) -> bool {
        self.exited.borrow().is_some_and(|status| status.success())
    }

    /// Kills the process, and returns once it has ended.
    pub(crate) async fn kill(&mut self) {
        // ESRCH: it has ended already.
        let _ = self.pidfd.kill();
        self.ended().await;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // ESRCH: it has ended already.
        let _ = self.pidfd.kill();
    }
}
