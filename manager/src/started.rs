//! A sandbox whose VMM this process started: waiting for it to boot, letting it go, or ending it with everything it has.

use crate::{
    control::{ControlClient, ControlError},
    create::CreateError,
    directory::{DirectoryError, SandboxDirectory},
    host,
    last_words::LastWords,
    launch::{LaunchError, VmmProcess},
    parts::{MachineFiles, Parts},
    remove,
    sandbox::Sandbox,
    state::{self, State},
};
use sandboxvm_protocol::vmm::{ControlRequest, ExitReason};
use std::{
    io,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// How long a VMM that reported its end may take to exit before its logs are read.
const EXIT_WITHIN: Duration = Duration::from_secs(1);

/// Why a machine did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It ended, and said why.
    #[error("the sandbox ended while it was booting: {0}")]
    Ended(ExitReason),
    /// Its VMM ended without a word.
    #[error("the VMM ended while the sandbox was booting ({0})")]
    Vanished(String),
    /// It goes on from a snapshot, and its agent does not answer.
    #[error("the sandbox was restored, but its guest agent did not respond within {} s", .0.as_secs())]
    Silent(Duration),
    /// It took too long.
    #[error("the sandbox did not boot within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// A sandbox and the VMM this process started for it. Dropping it ends the machine and removes
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
    /// One whose VMM waits to be told its machine.
    pub(crate) fn new(sandbox: Sandbox, vmm: VmmProcess, boot_timeout: Duration) -> Self {
        Self { sandbox: Some(sandbox), vmm: Some(vmm), boot_timeout, is_ready: false, is_restored: false }
    }

    /// The same of a machine that goes on from a snapshot: its agent listened then, and is to answer soon.
    pub(crate) fn restored(sandbox: Sandbox, vmm: VmmProcess, boot_timeout: Duration) -> Self {
        let mut started = Self::new(sandbox, vmm, boot_timeout);
        started.is_restored = true;
        started
    }

    /// Tells it.
    pub(crate) fn hand_over(&self, parts: Parts, machine: &MachineFiles<'_>) -> Result<(), LaunchError> {
        let vmm = self.vmm.as_ref().expect("set by new, taken only by methods that consume self");
        parts.hand_over(vmm, &self.sandbox().record, machine)
    }

    /// The sandbox.
    ///
    /// # Panics
    /// Never: it is there until one of the consuming methods is called.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("taken only by methods that consume self")
    }

    /// The launch channel.
    pub(crate) fn channel(&mut self) -> &mut ControlClient {
        &mut self.vmm.as_mut().expect("set by new, taken only by methods that consume self").channel
    }

    /// When its VMM's process was asked for (CLOCK_MONOTONIC, as the machine's own timeline).
    #[must_use]
    pub fn spawned_at(&self) -> Option<Instant> {
        self.vmm.as_ref().map(|vmm| vmm.spawned_at)
    }

    /// Waits until the agent listens. Cancel safe.
    ///
    /// # Errors
    /// [`CreateError::Start`]; the machine is gone then, the sandbox still to be finished.
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

    /// As [`Self::ready`], and the machine knows its name, the time and randomness of its own: it can be handed on.
    ///
    /// # Errors
    /// [`CreateError::Start`] and [`CreateError::Identity`]; the sandbox is still to be finished.
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

    /// Lets the machine go on without this process.
    #[must_use]
    pub fn detach(mut self) -> Sandbox {
        if let Some(vmm) = self.vmm.take() {
            vmm.let_go();
        }
        self.sandbox.take().expect("taken only by methods that consume self")
    }

    /// Begins the end, for a caller that still has output to write meanwhile: a VM's teardown takes some 15 ms.
    pub fn begin_end(&self) {
        if let Some(vmm) = &self.vmm {
            vmm.kill();
        }
    }

    /// Ends the machine, removes the sandbox, and returns when no process, file or lock of it is left.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub async fn finish(mut self) -> Result<(), DirectoryError> {
        self.begin_end();
        let sandbox = self.sandbox.take().expect("taken only by methods that consume self");
        let mut vmm = self.vmm.take();
        // While the kernel takes the VM down, which removing it waits for.
        let directory = sandbox.directory.path().to_owned();
        let removed = tokio::task::spawn_blocking(move || discard(sandbox)).await;
        if let Some(vmm) = &mut vmm {
            vmm.wait().await;
        }
        removed.map_err(|error| DirectoryError::new("remove", directory, io::Error::other(error)))?
    }
}

/// Has the limits kept that are the VMM's to keep, and waits until the agent of the machine behind it listens. Cancel safe.
async fn ready(sandbox: &Sandbox, vmm: &mut VmmProcess, within: Duration) -> Result<(), CreateError> {
    let Sandbox { directory, record, .. } = sandbox;
    let limits = record.limits.of_the_vmm();
    if !limits.is_empty() {
        for request in limits.into_iter().chain([ControlRequest::Start]) {
            match vmm.channel.ask(request).await {
                Ok(()) => {}
                // It has ended, and said why.
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
        // The cause says it already.
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
    // Its last words are in the logs and the status file once it is gone.
    let exit = timeout(EXIT_WITHIN, vmm.wait()).await.ok().flatten();
    if let ControlError::Ended(reason) = failure {
        return Err(StartError::Ended(reason));
    }
    match state::read(directory) {
        Ok(State::Exited { reason }) => Err(StartError::Ended(reason)),
        _ => Err(StartError::Vanished(exit.map_or_else(|| failure.to_string(), |status| status.to_string()))),
    }
}

/// Waits for a machine that replaces another in its directory, and lets it go on without this process. On a failure,
/// or when nobody waits any more, it is ended; its directory stays.
pub(crate) async fn attend(sandbox: &Sandbox, mut vmm: VmmProcess, within: Duration) -> Result<(), CreateError> {
    ready(sandbox, &mut vmm, within).await?;
    vmm.let_go();
    Ok(())
}

impl Drop for StartedSandbox {
    fn drop(&mut self) {
        self.begin_end();
        if let Some(sandbox) = self.sandbox.take() {
            // Nobody is left to tell; a sweep takes what stays.
            let _ = discard(sandbox);
        }
    }
}

fn discard(sandbox: Sandbox) -> Result<(), DirectoryError> {
    let Sandbox { home, directory, record } = sandbox;
    remove::discard(&home, directory, &record.id, record.name.as_ref())
}
