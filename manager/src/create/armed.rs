//! An armed machine: restored ahead of its use, so that its VMM has done everything except run it.
//! This module arms machines and hands them out for [`crate::create::pool`], which makes sure that
//! each is handed out only once. It may not let a machine run before it is handed out.

use crate::{
    audit::Event,
    create::{
        basis::new_record,
        error::CreateError,
        from_snapshot::{NamedBasis, merged},
        machine::{Restored, restore_waiting},
        ready_snapshot,
        spec::{SandboxSpec, StartFrom},
        staged::Staged,
        start::write_down_services,
        started::StartedSandbox,
    },
    home::{directory::DirectoryError, host::HostIdentity},
    limits::kept::Limits,
    manager::Manager,
    record::SandboxRecord,
    vmm::{control::ControlError, launch::VmmProcess, wire::WireError},
};
use sandboxvm_images::{
    bundle::{Bundle, Part},
    file_version::FileVersion,
};
use sandboxvm_protocol::{
    ids::SandboxName,
    vmm::{ControlRequest, Phase, VmmEvent},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::timeout;

/// A machine that waits to be handed out. Dropping it ends its VMM and removes its directory.
#[derive(Debug)]
pub(crate) struct ArmedMachine {
    // Field order is drop order: the VMM is killed before its directory is removed.
    vmm: VmmProcess,
    staged: Staged,
    /// The files that it was made from.
    made_from: Vec<(PathBuf, FileVersion)>,
    /// Variables of the snapshot, which the sandbox has unless the request sets them.
    env: Vec<String>,
}

impl Manager {
    /// Restores a machine of the kind that `spec` describes, without running it. If `spec` says
    /// boot, the machine is restored from the ready snapshot of its kind anyway. Cancel safe.
    pub(crate) async fn arm(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<ArmedMachine, CreateError> {
        match &spec.start_from {
            StartFrom::Snapshot(name) => self.arm_named(bundle, spec, name).await,
            StartFrom::SnapshotDisk(_) => Err(CreateError::NotArmed),
            StartFrom::Ready | StartFrom::Boot => self.arm_ready(bundle, spec).await,
        }
    }

    async fn arm_ready(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<ArmedMachine, CreateError> {
        let basis = self.basis(bundle, spec.disk).await?;
        let host = HostIdentity::read()?;
        let key = ready_snapshot::key(&basis.contents, spec, &host);
        let staged = Staged::begin(&self.home, new_record(spec, &basis)?)?;
        staged.admit()?;
        let snapshot = ready_snapshot::ensure(&self.home, &key, &basis, spec).await?;
        let Bundle { kernel, image, agent, .. } = bundle;
        let SandboxRecord { kernel: of_kernel, image: of_image, agent: of_agent, .. } = staged.record();
        let parts = [(kernel, of_kernel), (image, of_image), (agent, of_agent)];
        let made_from = parts.map(|(path, record)| (path.clone(), record.identity.clone())).to_vec();
        let armed = arm(staged, &basis.restored_from(&snapshot, &host), bundle, made_from, spec.boot_timeout).await;
        if armed.as_ref().is_err_and(CreateError::is_bad_snapshot) {
            // The next attempt makes it again.
            ready_snapshot::remove(&self.home, &key)?;
        }
        armed
    }

    async fn arm_named(
        &self,
        bundle: &Bundle,
        spec: &SandboxSpec,
        name: &SandboxName,
    ) -> Result<ArmedMachine, CreateError> {
        let basis = NamedBasis::read(self, bundle, name)?;
        let staged = Staged::begin(&self.home, basis.record(spec)?)?;
        staged.admit()?;
        let made_from = basis.snapshot.identities()?;
        let mut armed = arm(staged, &basis.restored(), bundle, made_from, spec.boot_timeout).await?;
        armed.env.clone_from(&basis.snapshot.manifest.env);
        Ok(armed)
    }
}

/// Starts a VMM that restores a machine and waits.
async fn arm(
    staged: Staged,
    from: &Restored<'_>,
    bundle: &Bundle,
    mut made_from: Vec<(PathBuf, FileVersion)>,
    within: Duration,
) -> Result<ArmedMachine, CreateError> {
    let program = bundle.path(Part::Vmm);
    made_from.push((program.to_owned(), identity_of(program)?));
    let vmm = restore_waiting(&staged, from, program).await?;
    let mut armed = ArmedMachine { vmm, staged, made_from, env: Vec::new() };
    let Ok(event) = timeout(within, armed.vmm.channel.next_event()).await else {
        return Err(CreateError::Armed(ControlError::Unfinished(within)));
    };
    match event {
        Ok(VmmEvent::Phase(Phase::Created)) => Ok(armed),
        Ok(VmmEvent::Ended(reason)) => Err(CreateError::Armed(ControlError::Ended(reason))),
        Ok(VmmEvent::Phase(_)) => {
            Err(CreateError::Armed(WireError::Unexpected("start of a machine that was to wait").into()))
        }
        Err(error) => Err(CreateError::Armed(error.into())),
    }
}

impl ArmedMachine {
    /// Returns true while the files that the machine was made from are still the same files.
    pub(crate) fn is_current(&self) -> bool {
        self.made_from.iter().all(|(path, identity)| identity_of(path).is_ok_and(|now| now == *identity))
    }

    /// Gives the machine the name, the variables and the `ephemeral` flag that `spec` asks for. If
    /// this fails, the machine is unchanged.
    pub(crate) fn become_wanted(&mut self, spec: &SandboxSpec) -> Result<(), CreateError> {
        Ok(self.staged.become_wanted(spec.name.clone(), merged(&self.env, &spec.env)?, spec.ephemeral)?)
    }

    /// Publishes the sandbox and runs its machine. Returns `None` if its VMM has ended; then
    /// nothing of it is left.
    pub(crate) async fn hand_out(self, spec: &SandboxSpec) -> Result<Option<StartedSandbox>, CreateError> {
        // Bound in this order, so that the VMM is killed before its directory is removed.
        let Self { staged, vmm, .. } = self;
        write_down_services(staged.home(), &staged, spec)?;
        staged.record().write(staged.directory())?;
        // The sandbox is published before it runs: a VMM must never live in a directory that a
        // sweep may remove.
        let mut started = StartedSandbox::new(staged.publish()?, vmm, spec.boot_timeout).of_snapshot();
        // The limits are set before the guest runs.
        let mut requests = Limits::new(spec.limits, started.sandbox().record.memory_bytes).of_the_vmm();
        requests.push(ControlRequest::Start);
        if !spec.ephemeral {
            requests.push(ControlRequest::Untie);
        }
        for request in requests {
            match started.channel().ask(request).await {
                Ok(()) => {}
                Err(ControlError::Wire(error)) if error.is_disconnect() => {
                    started.finish().await?;
                    return Ok(None);
                }
                Err(error) => return Err(CreateError::Armed(error)),
            }
        }
        let sandbox = started.sandbox();
        sandbox.trail().append(Event::created(&sandbox.record, (&spec.start_from).into()))?;
        if let Some(network) = &spec.network {
            sandbox.trail().append(Event::network_set(network))?;
        }
        Ok(Some(started))
    }
}

fn identity_of(path: &Path) -> Result<FileVersion, DirectoryError> {
    let metadata = fs::metadata(path).map_err(|error| DirectoryError::new("examine", path, error))?;
    Ok(FileVersion::from(&metadata))
}
