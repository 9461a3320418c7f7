//! A sandbox whose VMM this process started: waits for its boot, detaches from it, or ends it and
//! removes everything of it.

use crate::{
    create::error::StartError,
    create::{
        error::CreateError,
        launch::{Prepared, Start},
    },
    discard,
    home::{
        directory::{DirectoryError, SandboxDirectory},
        host,
    },
    sandbox::Sandbox,
    vmm::{
        control::{ControlClient, ControlError},
        last_words::LastWords,
        launch::VmmProcess,
        state::{self, State},
    },
};
use sandboxvm_protocol::vmm::{ControlRequest, ExitReason};
use std::{
    io,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// Maximum time from a VMM's report of its end until it exits, before its logs are read.
const EXIT_WITHIN: Duration = Duration::from_secs(1);

/// A sandbox and the VMM that this process started for it. Dropping it ends the machine and removes
/// the sandbox, unless [`Self::detach`] or [`Self::finish`] was called.
#[derive(Debug)]
pub struct StartedSandbox {
    sandbox: Option<Sandbox>,
    vmm: Option<VmmProcess>,
    boot_timeout: Duration,
    is_ready: bool,
    is_restored: bool,
}

impl StartedSandbox {
    /// Takes over a sandbox whose machine was launched.
    pub(crate) fn new(sandbox: Sandbox, vmm: VmmProcess, boot_timeout: Duration) -> Self {
        Self { sandbox: Some(sandbox), vmm: Some(vmm), boot_timeout, is_ready: false, is_restored: false }
    }

    /// Hands a VMM the machine of a sandbox that was just published. Removes the sandbox if that
    /// fails.
    pub(crate) fn launch(
        sandbox: Sandbox,
        prepared: Prepared<'_>,
        tie_to_launcher: bool,
        boot_timeout: Duration,
    ) -> Result<Self, CreateError> {
        match prepared.hand_over(&sandbox.record, Start::Now, tie_to_launcher) {
            Ok(vmm) => Ok(Self::new(sandbox, vmm, boot_timeout)),
            Err(error) => {
                // The VMM was killed when it was dropped. A sweep removes what stays.
                let _ = give_up(sandbox);
                Err(error.into())
            }
        }
    }

    /// Marks the machine as restored from a snapshot: its agent listened when the snapshot was
    /// taken, so it has to answer soon.
    pub(crate) fn of_snapshot(mut self) -> Self {
        self.is_restored = true;
        self
    }

    /// Returns the sandbox.
    ///
    /// # Panics
    /// Never: the sandbox is present until one of the consuming methods is called.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("taken only by methods that consume self")
    }

    pub(crate) fn channel(&mut self) -> &mut ControlClient {
        &mut self.vmm.as_mut().expect("set by new, taken only by methods that consume self").channel
    }

    /// Returns when the process of the VMM was requested (CLOCK_MONOTONIC, like the machine's
    /// timeline).
    #[must_use]
    pub fn spawned_at(&self) -> Option<Instant> {
        self.vmm.as_ref().map(|vmm| vmm.spawned_at)
    }

    /// Waits until the agent listens. Cancel safe.
    ///
    /// # Errors
    /// [`CreateError::Start`]. The machine has ended then, and the caller still has to call
    /// [`Self::finish`].
    pub async fn ready(&mut self) -> Result<(), CreateError> {
        if self.is_ready {
            return Ok(());
        }
        let within = self.boot_timeout;
        let sandbox = self.sandbox.as_ref().expect("taken only by methods that consume self");
        let vmm = self.vmm.as_mut().expect("set by new, taken only by methods that consume self");
        ready(sandbox, vmm, within).await?;
        self.is_ready = true;
        Ok(())
    }

    /// Like [`Self::ready`], and also gives the machine its name, the time and fresh randomness, so
    /// that it can be handed on.
    ///
    /// # Errors
    /// [`CreateError::Start`] and [`CreateError::Identity`]. The caller still has to call
    /// [`Self::finish`].
    pub async fn settled(&mut self) -> Result<(), CreateError> {
        self.ready().await?;
        let restored_within = host::restored_agent_answers_within().min(self.boot_timeout);
        let within = if self.is_restored { restored_within } else { self.boot_timeout };
        match timeout(within, self.sandbox().settle()).await {
            Ok(result) => result.map_err(|error| CreateError::Identity(Box::new(error))),
            Err(_) => {
                let last_words = LastWords::read(&self.sandbox().directory);
                let cause = if self.is_restored { StartError::Silent(within) } else { StartError::TimedOut(within) };
                Err(CreateError::Start { cause, last_words })
            }
        }
    }

    /// Lets the machine run without this process.
    #[must_use]
    pub fn detach(mut self) -> Sandbox {
        if let Some(vmm) = self.vmm.take() {
            vmm.let_go();
        }
        self.sandbox.take().expect("taken only by methods that consume self")
    }

    /// Starts to end the machine, for a caller that still has output to write meanwhile: taking
    /// down a VM takes some 15 ms.
    pub fn begin_end(&self) {
        if let Some(vmm) = &self.vmm {
            vmm.kill();
        }
    }

    /// Ends the machine, removes the sandbox, and returns when no process, file or lock of it is
    /// left.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub async fn finish(mut self) -> Result<(), DirectoryError> {
        self.begin_end();
        let sandbox = self.sandbox.take().expect("taken only by methods that consume self");
        let mut vmm = self.vmm.take();
        // Removed while the kernel takes down the VM. Removal waits for that.
        let directory = sandbox.directory.path().to_owned();
        let removed = tokio::task::spawn_blocking(move || give_up(sandbox)).await;
        if let Some(vmm) = &mut vmm {
            vmm.wait().await;
        }
        removed.map_err(|error| DirectoryError::new("remove", directory, io::Error::other(error)))?
    }
}

/// Sets the limits that the VMM enforces, and waits until the agent of its machine listens. Cancel
/// safe.
async fn ready(sandbox: &Sandbox, vmm: &mut VmmProcess, within: Duration) -> Result<(), CreateError> {
    let Sandbox { directory, record, .. } = sandbox;
    let limits = record.limits.of_the_vmm();
    if !limits.is_empty() {
        for request in limits.into_iter().chain([ControlRequest::Start]) {
            match vmm.channel.ask(request).await {
                Ok(()) => {}
                // The VMM has ended and reported why; `boot` reads the reason.
                Err(ControlError::Wire(error)) if error.is_disconnect() => break,
                Err(error) => return Err(CreateError::VmmLimits(error)),
            }
        }
    }
    let Err(cause) = boot(directory, vmm, within).await else { return Ok(()) };
    let mut last_words = LastWords::read(directory);
    if let StartError::Ended(ExitReason::BadConfig { message } | ExitReason::HostFailure { message }) = &cause
        && last_words.vmm.ends_with(message)
    {
        // The cause already contains this.
        last_words.vmm.clear();
    }
    Err(CreateError::Start { cause, last_words })
}

async fn boot(directory: &SandboxDirectory, vmm: &mut VmmProcess, within: Duration) -> Result<(), StartError> {
    let failure = match timeout(within, vmm.channel.ready()).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failure)) => failure,
        Err(_) => {
            vmm.kill();
            vmm.wait().await;
            return Err(StartError::TimedOut(within));
        }
    };
    // After its exit, its last words are in the logs and in the status file.
    let exit = timeout(EXIT_WITHIN, vmm.wait()).await.ok().flatten();
    if let ControlError::Ended(reason) = failure {
        return Err(StartError::Ended(reason));
    }
    match state::read(directory) {
        Ok(State::Exited { reason }) => Err(StartError::Ended(reason)),
        _ => Err(StartError::Vanished(exit.map_or_else(|| failure.to_string(), |status| status.to_string()))),
    }
}

/// Waits for a machine that replaces another in its directory, and lets it run without this
/// process. On a failure, or when the caller stops waiting, the machine is ended; its directory
/// stays.
pub(crate) async fn attend(sandbox: &Sandbox, mut vmm: VmmProcess, within: Duration) -> Result<(), CreateError> {
    ready(sandbox, &mut vmm, within).await?;
    vmm.let_go();
    Ok(())
}

impl Drop for StartedSandbox {
    fn drop(&mut self) {
        self.begin_end();
        if let Some(sandbox) = self.sandbox.take() {
            // No caller is left to receive the error. A sweep removes what stays.
            let _ = give_up(sandbox);
        }
    }
}

fn give_up(sandbox: Sandbox) -> Result<(), DirectoryError> {
    let Sandbox { home, directory, record } = sandbox;
    discard::discard(&home, directory, &record.id, record.name.as_ref())
}
