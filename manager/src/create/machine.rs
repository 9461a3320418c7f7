//! How a staged directory becomes a machine: its VMM is started first, everything the machine needs is put into the
//! directory while that leaves the host, the directory is moved into sight, and the VMM is told its machine. Called by
//! `create`, `ready` and `armed`; decides nothing of what the sandbox is to be.

use crate::{
    create::{
        basis::Basis,
        error::CreateError,
        parts::{MachineFiles, Parts, SourceFiles},
        staged::Staged,
        started::StartedSandbox,
    },
    guest::identity,
    home::host::HostIdentity,
    snapshot::{
        lineage::{Contents, Files, Kind, Lineage, Origin, TEMPLATE, free_name, keep_disks},
        store::{SnapshotFiles, StoredSnapshot},
    },
    vmm::launch::VmmProcess,
};
use std::{fs::File, path::Path, time::Duration};

/// Where a booting machine's directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// Among the sandboxes.
    Published,
    /// In staging; its VMM ends with this process.
    Hidden,
}

/// Boots a machine in a staged directory.
pub(crate) fn boot(
    staged: Staged,
    basis: &Basis,
    boot_timeout: Duration,
    visibility: Visibility,
) -> Result<StartedSandbox, CreateError> {
    let directory = staged.directory();
    let parts = Parts::make(directory)?;
    let vmm = staged.spawn_vmm(&parts, &basis.open.vmm)?;
    staged.record().write(directory)?;
    identity::make_due(directory)?;
    directory.link(&basis.template, TEMPLATE)?;
    keep_disks(directory, &basis.open.agent, &basis.open.image)?;
    let top = free_name(directory, Kind::Disk)?;
    let layers = [directory.create_file(&top)?];
    let files = Files { disk: vec![top], baseline: Some(Vec::new()) };
    Lineage::new(basis.contents.clone(), Origin::Boot, None, files).write_first(directory)?;
    let machine = MachineFiles {
        source: SourceFiles::Boot { kernel: &basis.open.kernel },
        agent: &basis.open.agent,
        image: &basis.open.image,
        template: &basis.template,
        layers: &layers,
        tie_to_launcher: staged.record().ephemeral || visibility == Visibility::Hidden,
        start: true,
    };
    // Seen before it runs: a VMM must never live on in a directory that a sweep may take.
    let sandbox = match visibility {
        Visibility::Published => staged.publish()?,
        Visibility::Hidden => staged.keep_hidden(),
    };
    let started = StartedSandbox::new(sandbox, vmm, boot_timeout);
    started.hand_over(parts, &machine)?;
    Ok(started)
}

/// The read-only disks of a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disks<'a> {
    pub(crate) agent: &'a File,
    pub(crate) image: &'a File,
}

/// What a machine is restored from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Restored<'a> {
    pub(crate) snapshot: &'a StoredSnapshot,
    pub(crate) host: &'a HostIdentity,
    pub(crate) contents: &'a Contents,
    pub(crate) disks: Disks<'a>,
}

/// Lets a snapshot go on as the machine of a staged directory.
pub(crate) async fn restore(
    staged: Staged,
    from: &Restored<'_>,
    vmm: &Path,
    boot_timeout: Duration,
) -> Result<StartedSandbox, CreateError> {
    let prepared = Prepared::make(&staged, from, vmm).await?;
    staged.record().write(staged.directory())?;
    let tie_to_launcher = staged.record().ephemeral;
    let Prepared { parts, vmm, files } = prepared;
    let started = StartedSandbox::restored(staged.publish()?, vmm, boot_timeout);
    started.hand_over(parts, &files.machine(from.disks, tie_to_launcher, true))?;
    Ok(started)
}

/// Boots a machine from the disk of a snapshot, in a staged directory.
pub(crate) async fn boot_disk(
    staged: Staged,
    from: &Restored<'_>,
    kernel: &File,
    vmm: &Path,
    boot_timeout: Duration,
) -> Result<StartedSandbox, CreateError> {
    let directory = staged.directory();
    let parts = Parts::make(directory)?;
    let vmm = staged.spawn_vmm(&parts, vmm)?;
    let (mut layers, template) = from.snapshot.disk_files().await?;
    identity::make_due(directory)?;
    let origin = from.snapshot.link_into(directory)?;
    keep_disks(directory, from.disks.agent, from.disks.image)?;
    let Origin::Snapshot { disk, .. } = &origin else { unreachable!("link_into makes no other") };
    let top = free_name(directory, Kind::Disk)?;
    layers.push(directory.create_file(&top)?);
    let files = Files { disk: disk.iter().cloned().chain([top]).collect(), baseline: Some(Vec::new()) };
    let seals = from.snapshot.seals_as(&origin);
    let lineage = Lineage::new(from.contents.clone(), origin, None, files).with_seals(seals).rebooted();
    lineage.write_first(directory)?;
    staged.record().write(directory)?;
    let machine = MachineFiles {
        source: SourceFiles::Boot { kernel },
        agent: from.disks.agent,
        image: from.disks.image,
        template: &template,
        layers: &layers,
        tie_to_launcher: staged.record().ephemeral,
        start: true,
    };
    let started = StartedSandbox::new(staged.publish()?, vmm, boot_timeout);
    started.hand_over(parts, &machine)?;
    Ok(started)
}

/// A staged directory with all that its machine goes on from, and a VMM that waits to be told.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) parts: Parts,
    pub(crate) vmm: VmmProcess,
    pub(crate) files: RestoredFiles,
}

/// What a restored machine is handed beside its own parts and its read-only disks.
#[derive(Debug)]
pub(crate) struct RestoredFiles {
    snapshot: SnapshotFiles,
    layers: Vec<File>,
}

impl Prepared {
    pub(crate) async fn make(staged: &Staged, from: &Restored<'_>, vmm: &Path) -> Result<Self, CreateError> {
        let directory = staged.directory();
        let parts = Parts::make(directory)?;
        let vmm = staged.spawn_vmm(&parts, vmm)?;
        let mut snapshot = from.snapshot.files(from.host).await?;
        identity::make_due(directory)?;
        let origin = from.snapshot.link_into(directory)?;
        keep_disks(directory, from.disks.agent, from.disks.image)?;
        let Origin::Snapshot { id, memory, disk, .. } = &origin else { unreachable!("link_into makes no other") };
        let top = free_name(directory, Kind::Disk)?;
        let mut layers = std::mem::take(&mut snapshot.disk);
        layers.push(directory.create_file(&top)?);
        let files = Files { disk: disk.iter().cloned().chain([top]).collect(), baseline: Some(memory.clone()) };
        let parent = Some(id.clone());
        let seals = from.snapshot.seals_as(&origin);
        Lineage::new(from.contents.clone(), origin, parent, files).with_seals(seals).write_first(directory)?;
        Ok(Self { parts, vmm, files: RestoredFiles { snapshot, layers } })
    }
}

impl RestoredFiles {
    pub(crate) fn machine<'a>(&'a self, disks: Disks<'a>, tie_to_launcher: bool, start: bool) -> MachineFiles<'a> {
        MachineFiles {
            source: SourceFiles::Snapshot { state: &self.snapshot.state, memory: &self.snapshot.memory },
            agent: disks.agent,
            image: disks.image,
            template: &self.snapshot.template,
            layers: &self.layers,
            tie_to_launcher,
            start,
        }
    }
}

impl Basis {
    pub(crate) fn restored_from<'a>(&'a self, snapshot: &'a StoredSnapshot, host: &'a HostIdentity) -> Restored<'a> {
        let disks = Disks { agent: &self.open.agent, image: &self.open.image };
        Restored { snapshot, host, contents: &self.contents, disks }
    }
}
