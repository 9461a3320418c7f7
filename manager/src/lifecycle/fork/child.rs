//! One copy while it is made: its files, its VMM, and its removal if it is not finished.

use super::error::ForkError;
use crate::{
    audit::{self, Event},
    create::parts::{self, Parts},
    discard,
    guest::{
        connection::agent::{AgentConnection, AgentError},
        silence::{Silence, SilentPart},
    },
    home::directory::SandboxDirectory,
    limits::cpu_share,
    sandbox::Sandbox,
    vmm::{
        control::{ControlClient, ControlError},
        descriptors::LaunchFiles,
        family,
        group::{self, Group},
        lock, state,
    },
};
use sandboxvm_protocol::{
    ids::SandboxId,
    vmm::{ChildDevice, ControlRequest, ForkChild, VmmEvent},
};
use std::{
    fs::File,
    os::unix::net::UnixStream as StdUnixStream,
    time::{Duration, Instant},
};

/// The VMM of a guest in which no process listens refuses a connection sooner than this. If the
/// refusal took longer, the guest lacked the CPU time to answer, among many busy ones, for as long
/// as its VMM waits.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
/// The files that the VMM of a child receives.
pub(super) struct ChildFiles {
    pub(super) parts: Parts,
    pub(super) top: File,
    pub(super) launcher: StdUnixStream,
}

impl ChildFiles {
    pub(super) fn request<'a>(&'a self, child: &Child, files: &mut LaunchFiles<'a>) -> ForkChild {
        let parts = &self.parts;
        ForkChild {
            sandbox: child.sandbox().record.id.clone(),
            launcher: files.add(&self.launcher),
            devices: vec![
                ChildDevice::Block { top: files.add(&self.top) },
                ChildDevice::Vsock { listener: files.add(&parts.vsock) },
            ],
            console: files.add(&parts.console),
            log: files.add(&parts.vmm_log),
            control: files.add(&parts.control),
            status: files.add(&parts.status),
            lock: files.add(&parts.lock),
            tie_to_launcher: true,
        }
    }
}

/// A child whose VMM exists or is about to. The VMM is tied to this process until the child is
/// announced. Dropping the value ends the VMM immediately and removes the sandbox.
pub(super) struct Child {
    pub(super) sandbox: Option<Sandbox>,
    pub(super) channel: ControlClient,
    /// The control group, which is linked from the child's directory; the VMM is moved into it.
    pub(super) group: Option<Group>,
    /// True while the parent's VMM may be about to make the child: then the parent holds the
    /// child's lock for a moment.
    pub(super) is_asked_for: bool,
}

impl Child {
    pub(super) fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("taken only by let_go, which consumes self")
    }

    /// Waits until the machine of the child is built.
    pub(super) async fn built(&mut self) -> Result<(), ForkError> {
        match self.channel.next_event().await.map_err(ControlError::from) {
            Ok(VmmEvent::Ended(reason)) => Err(ForkError::Child(ControlError::Ended(reason))),
            Ok(VmmEvent::Phase(_)) => Ok(()),
            Err(error) => Err(ForkError::Child(error)),
        }
    }

    /// Starts the guest and gives it its identity.
    pub(super) async fn begin(&mut self) -> Result<(), ForkError> {
        self.channel.ask(ControlRequest::Start).await.map_err(ForkError::Child)?;
        self.channel.ready().await.map_err(ForkError::Child)?;
        loop {
            let asked = Instant::now();
            match AgentConnection::settle(&self.sandbox().directory, &self.sandbox().record).await {
                Ok(()) => return Ok(()),
                Err(AgentError::NotListening) if asked.elapsed() > REFUSED_WITHIN => {}
                Err(AgentError::Silent(Silence { part: SilentPart::Agent, .. })) => {}
                Err(error) => return Err(ForkError::Identity(Box::new(self.sandbox().explain(error).await))),
            }
        }
    }

    /// Announces the child in the audit log and unties its VMM: from here on it lives without this
    /// process.
    pub(super) async fn announce(&mut self, parent: &SandboxId) -> Result<(), ForkError> {
        let copy = self.sandbox();
        copy.trail().append(Event::created(&copy.record, audit::Origin::Fork(parent.clone())))?;
        self.channel.ask(ControlRequest::Untie).await.map_err(ForkError::Child)
    }

    /// Waits for the child's process, which starts in the control group of its parent, and moves it
    /// into its own group before its guest runs; otherwise it would end with its parent. The kernel
    /// reports which process it is: a parent that was taken over can at most make another process
    /// that it started end with this child.
    pub(super) async fn enclose(&mut self, parent: &SandboxDirectory) -> Result<(), ForkError> {
        let vmm = self.channel.sender().await.map_err(ForkError::Child)?;
        let Sandbox { home: _, directory, record } = self.sandbox();
        let has_share = self.group.as_ref().is_some_and(|group| parts::bound(group, record));
        let is_in_group = self.group.as_ref().is_some_and(|group| group.admit(vmm.pid).is_ok());
        if !is_in_group {
            if Group::of(parent).is_some() {
                return Err(ForkError::Group);
            }
            family::write_down(directory, vmm.pid, true)?;
            if Group::release(directory) {
                directory.unlink(group::LINK)?;
            }
        }
        Ok(cpu_share::hold(
            directory,
            &record.id,
            record.memory_bytes,
            record.limits.cpu_share,
            vmm.pid,
            has_share && is_in_group,
        )?)
    }

    pub(super) fn let_go(mut self) -> Sandbox {
        self.sandbox.take().expect("taken only here")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A child that was requested and has no reply yet may start at any moment. It stays, as a
        // sandbox or as a dead one.
        if let Some(Sandbox { home, directory, record }) = self.sandbox.take()
            && !self.is_asked_for
        {
            kill(&directory);
            // Ends the processes in the child's group. The caller has a better error to report; a
            // sweep removes what stays.
            let _ = discard::discard(&home, directory, &record.id, None);
        }
    }
}

fn kill(directory: &SandboxDirectory) {
    let hint = state::status(directory).ok().flatten().map(|status| status.pid);
    // The lock is free if the VMM never took it.
    if matches!(lock::try_exclude_vmm(directory), Ok(None))
        && let Some(vmm) = lock::find_holder(directory, hint)
    {
        // ESRCH: the process has ended meanwhile.
        let _ = vmm.kill();
    }
}
