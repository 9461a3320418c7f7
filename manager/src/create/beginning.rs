//! What a machine starts from: its part of the lineage, and the open files that its VMM receives.
//!
//! A new sandbox and a sandbox that is reset start in the same ways; each constructor is one of
//! them. A constructor creates a new top layer in the directory of the sandbox, and links the other
//! files that the machine needs into it. The next change removes files that end up unused.

use crate::{
    create::basis::Basis,
    home::directory::{DirectoryError, SandboxDirectory},
    snapshot::{
        error::SnapshotError,
        lineage::{Contents, Files, Kind, Lineage, Origin, TEMPLATE, free_name, open_all},
        seal::Seals,
        store::{SnapshotFiles, StoredSnapshot},
    },
};
use rustix::fs::OFlags;
use sandboxvm_protocol::identity::SandboxId;
use std::fs::File;

/// How a machine starts.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    /// The kernel boots.
    Kernel(&'a File),
    /// State and memory of a snapshot are restored.
    Snapshot { state: &'a File, memory: &'a [File] },
}

/// The start of a machine, in one of the ways that the constructors offer.
#[derive(Debug)]
pub(crate) struct Beginning<'a> {
    pub(crate) contents: Contents,
    pub(crate) origin: Origin,
    pub(crate) parent: Option<SandboxId>,
    pub(crate) files: Files,
    pub(crate) seals: Seals,
    /// True if the kernel boots from a disk that was in use before.
    pub(crate) rebooted: bool,
    pub(crate) source: Source<'a>,
    pub(crate) template: &'a File,
    /// Oldest first. The last is empty, or the sandbox's existing top layer.
    pub(crate) layers: Vec<File>,
}

impl<'a> Beginning<'a> {
    /// Boots a kernel with an empty disk, in a new directory.
    pub(crate) fn boot(directory: &SandboxDirectory, basis: &'a Basis) -> Result<Self, DirectoryError> {
        directory.link(&basis.template, TEMPLATE)?;
        Self::boot_empty(directory, basis.contents.clone(), &basis.open.kernel, &basis.template)
    }

    /// Boots a kernel with an empty disk, in a directory that already has the template.
    pub(crate) fn boot_empty(
        directory: &SandboxDirectory,
        contents: Contents,
        kernel: &'a File,
        template: &'a File,
    ) -> Result<Self, DirectoryError> {
        let (disk, layers) = with_new_top(directory, &[], Vec::new())?;
        Ok(Self {
            contents,
            origin: Origin::Boot,
            parent: None,
            files: Files { disk, baseline: Some(Vec::new()) },
            seals: Seals::default(),
            rebooted: false,
            source: Source::Kernel(kernel),
            template,
            layers,
        })
    }

    /// Restores `snapshot`, whose files are `opened`.
    pub(crate) fn restore(
        directory: &SandboxDirectory,
        snapshot: &StoredSnapshot,
        contents: Contents,
        opened: &'a mut SnapshotFiles,
    ) -> Result<Self, SnapshotError> {
        let origin = snapshot.link_into(directory)?;
        let seals = snapshot.seals_as(&origin);
        Ok(Self::of_snapshot(directory, contents, origin, seals, opened)?)
    }

    /// Restores the snapshot that the sandbox started from, whose files are `opened`.
    pub(crate) fn restore_own(
        directory: &SandboxDirectory,
        lineage: &Lineage,
        opened: &'a mut SnapshotFiles,
    ) -> Result<Self, DirectoryError> {
        let Lineage { contents, origin, seals, .. } = lineage.clone();
        Self::of_snapshot(directory, contents, origin, seals, opened)
    }

    fn of_snapshot(
        directory: &SandboxDirectory,
        contents: Contents,
        origin: Origin,
        seals: Seals,
        opened: &'a mut SnapshotFiles,
    ) -> Result<Self, DirectoryError> {
        let Origin::Snapshot { id, memory, disk, .. } = &origin else {
            unreachable!("called with the origin of a sandbox that began from a snapshot")
        };
        let (names, layers) = with_new_top(directory, disk, std::mem::take(&mut opened.disk))?;
        let opened: &'a SnapshotFiles = opened;
        Ok(Self {
            contents,
            parent: Some(id.clone()),
            files: Files { disk: names, baseline: Some(memory.clone()) },
            seals,
            rebooted: false,
            source: Source::Snapshot { state: &opened.state, memory: &opened.memory },
            template: &opened.template,
            layers,
            origin,
        })
    }

    /// Boots a kernel from the disk of `snapshot`, whose layers and template are given.
    pub(crate) fn boot_disk(
        directory: &SandboxDirectory,
        snapshot: &StoredSnapshot,
        contents: Contents,
        kernel: &'a File,
        layers: Vec<File>,
        template: &'a File,
    ) -> Result<Self, SnapshotError> {
        let origin = snapshot.link_into(directory)?;
        let Origin::Snapshot { disk, .. } = &origin else { unreachable!("link_into makes no other") };
        let (disk, layers) = with_new_top(directory, disk, layers)?;
        Ok(Self {
            contents,
            parent: None,
            files: Files { disk, baseline: Some(Vec::new()) },
            seals: snapshot.seals_as(&origin),
            rebooted: true,
            source: Source::Kernel(kernel),
            template,
            layers,
            origin,
        })
    }

    /// Boots a kernel from the disk of the sandbox, as its last machine left it.
    pub(crate) fn boot_own_disk(
        directory: &SandboxDirectory,
        lineage: &Lineage,
        kernel: &'a File,
        template: &'a File,
    ) -> Result<Self, DirectoryError> {
        let Lineage { contents, origin, seals, files: Files { disk, .. }, .. } = lineage.clone();
        let mut layers = Vec::new();
        if let [below @ .., top] = &disk[..] {
            layers = open_all(directory, below)?;
            layers.push(directory.open_file(top, OFlags::RDWR)?);
        }
        Ok(Self {
            contents,
            origin,
            parent: None,
            files: Files { disk, baseline: Some(Vec::new()) },
            seals,
            rebooted: true,
            source: Source::Kernel(kernel),
            template,
            layers,
        })
    }

    /// Returns the lineage of a sandbox that starts like this.
    pub(crate) fn lineage(&self) -> Lineage {
        let Self { contents, origin, parent, files, seals, .. } = self;
        let lineage = Lineage::new(contents.clone(), origin.clone(), parent.clone(), files.clone());
        let lineage = lineage.with_seals(seals.clone());
        if self.rebooted { lineage.rebooted() } else { lineage }
    }
}

/// Adds an empty layer to a chain. Returns all names and all files, oldest first.
fn with_new_top(
    directory: &SandboxDirectory,
    below: &[String],
    mut layers: Vec<File>,
) -> Result<(Vec<String>, Vec<File>), DirectoryError> {
    let top = free_name(directory, Kind::Disk)?;
    layers.push(directory.create_file(&top)?);
    Ok((below.iter().cloned().chain([top]).collect(), layers))
}
