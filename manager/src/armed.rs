//! A machine restored ahead of its use: its VMM has done everything but run it. Made and handed out for [`crate::pool`],
//! which sees to it that this happens once.

use crate::{
    audit::{Event, Origin},
    begin::Prepared,
    control::ControlError,
    create::{CreateError, SandboxSpec, check_env, new_record},
    directory::DirectoryError,
    host::HostIdentity,
    launch::VmmProcess,
    manager::Manager,
    ready,
    staged::Staged,
    started::StartedSandbox,
    wire::WireError,
};
use sandboxvm_images::{bundle::Bundle, identity::FileIdentity};
use sandboxvm_protocol::vmm::{ControlRequest, ExitReason, Phase, VmmEvent};
use std::{fs, path::Path};
use tokio::time::timeout;

/// See the module. Dropping it ends its VMM and leaves nothing.
#[derive(Debug)]
pub(crate) struct ArmedMachine {
    // Field order is drop order: the VMM is killed before its directory goes.
    vmm: VmmProcess,
    staged: Staged,
    vmm_identity: FileIdentity,
}

impl Manager {
    /// Restores a machine of the kind that `spec` describes and stops short of running it. Cancel safe.
    pub(crate) async fn arm(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<ArmedMachine, CreateError> {
        let basis = self.basis(bundle, spec.disk).await?;
        let host = HostIdentity::read()?;
        let key = ready::key(&basis.contents, spec, &host);
        let staged = Staged::begin(&self.home, new_record(spec, &basis)?)?;
        staged.admit()?;
        let snapshot = ready::ensure(&self.home, &key, &basis, spec).await?;
        let vmm_identity = identity_of(bundle.vmm.as_path())?;
        let from = basis.restored_from(&snapshot, &host);
        let Prepared { parts, vmm, files } = Prepared::make(&staged, &from, &basis.open.vmm)?;
        parts.hand_over(&vmm, staged.record(), &files.machine(from.disks, true, false))?;
        let mut armed = ArmedMachine { vmm, staged, vmm_identity };
        let Ok(event) = timeout(spec.boot_timeout, armed.vmm.channel.next_event()).await else {
            return Err(CreateError::Armed(ControlError::Unfinished(spec.boot_timeout)));
        };
        match event {
            Ok(VmmEvent::Phase(Phase::Created)) => Ok(armed),
            Ok(VmmEvent::Ended(reason)) => {
                if matches!(reason, ExitReason::BadConfig { .. }) {
                    // The snapshot's own files are to blame: the next one is made anew.
                    ready::remove(&self.home, &key)?;
                }
                Err(CreateError::Armed(ControlError::Ended(reason)))
            }
            Ok(VmmEvent::Phase(_)) => {
                Err(CreateError::Armed(WireError::Unexpected("start of a machine that was to wait").into()))
            }
            Err(error) => Err(CreateError::Armed(error.into())),
        }
    }
}

impl ArmedMachine {
    /// True while kernel, image, agent and VMM are the very files it was made from.
    pub(crate) fn is_current(&self, bundle: &Bundle) -> bool {
        let record = self.staged.record();
        let is_same = |path: &Path, identity: &FileIdentity| identity_of(path).is_ok_and(|now| now == *identity);
        is_same(&bundle.kernel, &record.kernel.identity)
            && is_same(&bundle.image, &record.image.identity)
            && is_same(&bundle.agent, &record.agent.identity)
            && is_same(&bundle.vmm, &self.vmm_identity)
    }

    /// Makes it what `spec` wants, and takes the name. It is as it was when that is refused.
    pub(crate) fn become_wanted(&mut self, spec: &SandboxSpec) -> Result<(), CreateError> {
        check_env(&spec.env)?;
        Ok(self.staged.become_wanted(spec.name.clone(), spec.env.clone(), spec.ephemeral)?)
    }

    /// Makes it a sandbox as was wanted, and lets it run. `None` when its VMM is gone: then nothing of it is left.
    pub(crate) async fn hand_out(self, spec: &SandboxSpec) -> Result<Option<StartedSandbox>, CreateError> {
        // Bound in this order, so that the VMM is killed before its directory goes.
        let Self { staged, vmm, .. } = self;
        staged.record().write(staged.directory())?;
        // In sight before it runs: a VMM must never live on in a directory that a sweep may take.
        let mut started = StartedSandbox::new(staged.publish()?, vmm, spec.boot_timeout);
        let mut requests = vec![ControlRequest::Start];
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
        sandbox.trail().append(Event::created(&sandbox.record, Origin::Ready))?;
        Ok(Some(started))
    }
}

fn identity_of(path: &Path) -> Result<FileIdentity, DirectoryError> {
    let metadata = fs::metadata(path).map_err(|error| DirectoryError::new("examine", path, error))?;
    Ok(FileIdentity::from(&metadata))
}
