//! Turns a staged directory into the directory of a machine: launches, completes, publishes and
//! hands over. May not decide what the sandbox is to be.

use crate::{
    create::{
        basis::Basis,
        beginning::Beginning,
        error::CreateError,
        launch::{Disks, Launch, Prepared, Start},
        staged::Staged,
        started::StartedSandbox,
    },
    home::host::HostIdentity,
    snapshot::{
        lineage::Contents,
        store::{SnapshotFiles, StoredSnapshot},
    },
    vmm::launch::VmmProcess,
    volumes::{
        VolumeError,
        open::{self, OpenVolume},
    },
};
use std::{fs::File, path::Path, time::Duration};

/// Where the directory of a booting machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// Among the sandboxes.
    Published,
    /// In staging. The VMM ends with this process.
    Hidden,
}

/// What a machine is restored from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Restored<'a> {
    pub(crate) snapshot: &'a StoredSnapshot,
    pub(crate) host: &'a HostIdentity,
    pub(crate) contents: &'a Contents,
    pub(crate) disks: Disks<'a>,
}

impl Basis {
    pub(crate) fn restored_from<'a>(&'a self, snapshot: &'a StoredSnapshot, host: &'a HostIdentity) -> Restored<'a> {
        Restored { snapshot, host, contents: &self.contents, disks: self.disks() }
    }

    fn disks(&self) -> Disks<'_> {
        Disks { agent: &self.open.agent, image: &self.open.image }
    }
}

/// Boots a machine in a staged directory.
pub(crate) fn boot(
    staged: Staged,
    basis: &Basis,
    boot_timeout: Duration,
    visibility: Visibility,
) -> Result<StartedSandbox, CreateError> {
    let volumes = match visibility {
        Visibility::Published => volumes_of(&staged)?,
        Visibility::Hidden => open::blank(staged.directory(), &staged.record().mounts)?,
    };
    let launch = launch(&staged, &basis.open.vmm, volumes)?;
    let beginning = Beginning::boot(staged.directory(), basis)?;
    let prepared = launch.prepare(staged.directory(), staged.record(), beginning, basis.disks())?;
    staged.record().write(staged.directory())?;
    let is_tied = staged.record().ephemeral || visibility == Visibility::Hidden;
    let sandbox = match visibility {
        Visibility::Published => staged.publish()?,
        Visibility::Hidden => staged.keep_hidden(),
    };
    StartedSandbox::launch(sandbox, prepared, is_tied, boot_timeout)
}

/// Restores a snapshot as the machine of a staged directory.
pub(crate) async fn restore(
    staged: Staged,
    from: &Restored<'_>,
    vmm: &Path,
    boot_timeout: Duration,
) -> Result<StartedSandbox, CreateError> {
    from.snapshot.link_workspace_into(staged.directory())?;
    let launch = launch(&staged, vmm, volumes_of(&staged)?)?;
    let mut opened = from.snapshot.files(from.host).await?;
    let prepared = prepare_restored(launch, &staged, from, &mut opened)?;
    staged.record().write(staged.directory())?;
    let is_tied = staged.record().ephemeral;
    let started = StartedSandbox::launch(staged.publish()?, prepared, is_tied, boot_timeout)?;
    Ok(started.of_snapshot())
}

/// Restores a snapshot in a staged directory, without running the machine. Its VMM ends with this
/// process.
pub(crate) async fn restore_waiting(
    staged: &Staged,
    from: &Restored<'_>,
    vmm: &Path,
) -> Result<VmmProcess, CreateError> {
    from.snapshot.link_workspace_into(staged.directory())?;
    let launch = launch(staged, vmm, volumes_of(staged)?)?;
    let mut opened = from.snapshot.files(from.host).await?;
    let prepared = prepare_restored(launch, staged, from, &mut opened)?;
    Ok(prepared.hand_over(staged.record(), Start::OnRequest, true)?)
}

/// Boots a machine from the disk of a snapshot, in a staged directory.
pub(crate) async fn boot_disk(
    staged: Staged,
    from: &Restored<'_>,
    kernel: &File,
    vmm: &Path,
    boot_timeout: Duration,
) -> Result<StartedSandbox, CreateError> {
    from.snapshot.link_workspace_into(staged.directory())?;
    let launch = launch(&staged, vmm, volumes_of(&staged)?)?;
    let (layers, template) = from.snapshot.disk_files().await?;
    let directory = staged.directory();
    let contents = from.contents.clone();
    let beginning = Beginning::boot_disk(directory, from.snapshot, contents, kernel, layers, &template)?;
    let prepared = launch.prepare(directory, staged.record(), beginning, from.disks)?;
    staged.record().write(staged.directory())?;
    let is_tied = staged.record().ephemeral;
    StartedSandbox::launch(staged.publish()?, prepared, is_tied, boot_timeout)
}

fn volumes_of(staged: &Staged) -> Result<Vec<OpenVolume>, VolumeError> {
    open::open_all(staged.home(), &staged.record().mounts)
}

fn launch(staged: &Staged, vmm: &Path, volumes: Vec<OpenVolume>) -> Result<Launch, CreateError> {
    Ok(Launch::new(staged.home(), staged.directory(), staged.record(), vmm, volumes)?)
}

fn prepare_restored<'a>(
    launch: Launch,
    staged: &Staged,
    from: &Restored<'a>,
    opened: &'a mut SnapshotFiles,
) -> Result<Prepared<'a>, CreateError> {
    let directory = staged.directory();
    let beginning = Beginning::restore(directory, from.snapshot, from.contents.clone(), opened)?;
    Ok(launch.prepare(directory, staged.record(), beginning, from.disks)?)
}
