//! Starts the machine of a new sandbox from what its specification says: a kernel, the ready
//! snapshot of its kind, or a named snapshot with or without its memory.

use crate::{
    create::{
        basis::new_record,
        error::CreateError,
        from_snapshot::NamedBasis,
        machine::{Visibility, boot, boot_disk, restore},
        ready_snapshot,
        spec::{SandboxSpec, StartFrom, check_env},
        staged::Staged,
        started::StartedSandbox,
    },
    home::{directory::DirectoryError, host::HostIdentity, layout::Home},
    manager::Manager,
    mounts::{Mounts, MountsError, share_root::ShareRoot},
    network::{operator::present, record::NetworkRecord, spec::NetworkSpec},
    record::SandboxRecord,
    supervision, volumes, workspace,
};
use futures_util::future::BoxFuture;
use sandboxvm_images::bundle::{Bundle, Part};
use sandboxvm_protocol::ids::SandboxName;
use std::io;

impl Manager {
    /// Starts a machine as `spec` says. Returns while a machine that boots still does so.
    pub(crate) fn start_machine<'a>(
        &'a self,
        bundle: &'a Bundle,
        spec: &'a SandboxSpec,
    ) -> BoxFuture<'a, Result<StartedSandbox, CreateError>> {
        Box::pin(async move {
            check_env(&spec.env)?;
            check_network(&self.home, spec.network.as_ref())?;
            if let Some(workspace) = &spec.workspace {
                workspace.check()?;
                spec.mounts.check_beside_workspace(&workspace.at)?;
            }
            let needs_certificate =
                |network: &NetworkSpec| !network.secrets.is_empty() || !network.header_rules.is_empty();
            if spec.read_only_root && spec.network.as_ref().is_some_and(needs_certificate) {
                return Err(MountsError::ReadOnlyWithSecrets.into());
            }
            self.provide(&spec.mounts).await?;
            match &spec.start_from {
                StartFrom::Boot => self.start_booting(bundle, spec).await,
                StartFrom::Ready => self.start_ready(bundle, spec).await,
                StartFrom::Snapshot(name) => self.start_named(bundle, spec, name).await,
                StartFrom::SnapshotDisk(name) => self.start_disk_of(bundle, spec, name).await,
            }
        })
    }

    /// Makes volumes that do not exist.
    async fn provide(&self, mounts: &Mounts) -> Result<(), CreateError> {
        for share in mounts.shares() {
            ShareRoot::of_host(&self.home, &share)?;
        }
        if mounts.is_empty() {
            return Ok(());
        }
        let (home, mounts) = (self.home.clone(), mounts.clone());
        let made = tokio::task::spawn_blocking(move || {
            volumes::ensure(&home, &mounts)?;
            // What cannot be had is refused before a ready snapshot is made.
            volumes::open::open_all(&home, &mounts).map(drop)
        });
        let made = made.await;
        Ok(made
            .map_err(|error| DirectoryError::new("make a volume in", self.home.volumes(), io::Error::other(error)))??)
    }

    async fn start_booting(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let basis = self.basis(bundle, spec.disk).await?;
        let staged = self.staged(new_record(spec, &basis)?, spec)?;
        boot(staged, &basis, spec.boot_timeout, Visibility::Published)
    }

    /// Starts from the ready snapshot of this kind, and makes that if there is none.
    async fn start_ready(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let basis = self.basis(bundle, spec.disk).await?;
        let host = HostIdentity::read()?;
        let key = ready_snapshot::key(&basis.contents, spec, &host);
        let mut rebuilt = false;
        loop {
            // This comes before anything that takes long: from here on the name is claimed, and the
            // memory is reserved.
            let staged = self.staged(new_record(spec, &basis)?, spec)?;
            let snapshot = ready_snapshot::ensure(&self.home, &key, &basis, spec).await?;
            let from = basis.restored_from(&snapshot, &host);
            let restored =
                async { ready_or_finished(restore(staged, &from, &basis.open.vmm, spec.boot_timeout).await?).await };
            let failure = match restored.await {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            if rebuilt || !failure.is_bad_snapshot() {
                return Err(failure);
            }
            ready_snapshot::remove(&self.home, &key)?;
            rebuilt = true;
        }
    }

    async fn start_named(
        &self,
        bundle: &Bundle,
        spec: &SandboxSpec,
        name: &SandboxName,
    ) -> Result<StartedSandbox, CreateError> {
        let basis = NamedBasis::read(self, bundle, name)?;
        let staged = self.staged(basis.record(spec)?, spec)?;
        let started = restore(staged, &basis.restored(), bundle.path(Part::Vmm), spec.boot_timeout).await?;
        ready_or_finished(started).await
    }

    /// Boots from the disk of a snapshot. Returns while the machine still boots.
    async fn start_disk_of(
        &self,
        bundle: &Bundle,
        spec: &SandboxSpec,
        name: &SandboxName,
    ) -> Result<StartedSandbox, CreateError> {
        let basis = NamedBasis::read(self, bundle, name)?;
        let staged = self.staged(basis.record_of_boot(spec)?, spec)?;
        let kernel = basis.kernel(&self.home, bundle)?;
        boot_disk(staged, &basis.restored(), &kernel, bundle.path(Part::Vmm), spec.boot_timeout).await
    }
}

impl Manager {
    /// Claims the name, reserves room on the host, writes down network and services, and links the files
    /// of the workspace.
    fn staged(&self, record: SandboxRecord, spec: &SandboxSpec) -> Result<Staged, CreateError> {
        let staged = Staged::begin(&self.home, record)?;
        staged.admit()?;
        write_down_services(&self.home, &staged, spec)?;
        // A sandbox that starts from a named snapshot gets the files of that one later.
        if let Some(workspace) = &spec.workspace {
            workspace::files::adopt(staged.directory(), workspace)?;
        }
        Ok(staged)
    }
}

/// Rejects a network that the operator does not permit.
fn check_network(home: &Home, network: Option<&NetworkSpec>) -> Result<(), CreateError> {
    if let Some(network) = network {
        home.network().admit(network)?;
    }
    Ok(())
}

/// Writes down network and services of a sandbox that no other process sees yet.
pub(super) fn write_down_services(home: &Home, staged: &Staged, spec: &SandboxSpec) -> Result<(), CreateError> {
    if let Some(network) = &spec.network {
        present::write(home)?;
        let mut record = NetworkRecord::of(home.network(), network)?;
        record.keep_values(staged.directory())?;
        record.write(staged.directory())?;
    }
    Ok(supervision::plan(staged.directory(), &spec.services, spec.mounts.has_shares())?)
}

/// Returns a machine whose agent listens. Ends it and removes the sandbox if it does not come up.
async fn ready_or_finished(mut started: StartedSandbox) -> Result<StartedSandbox, CreateError> {
    match started.ready().await {
        Ok(()) => Ok(started),
        Err(error) => {
            // The caller needs the cause; a later sweep reports what could not be removed.
            let _ = started.finish().await;
            Err(error)
        }
    }
}
