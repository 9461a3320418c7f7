//! Launches a machine in the directory of a sandbox, new or used. Boot, restore, reset and the pool
//! have no other way to start a VMM.
//!
//! ```text
//! Launch::new, Launch::again  the VMM's process is spawned; it leaves the host meanwhile
//! Launch::prepare             identity due, read-only disks kept, lineage written: all files exist
//! Prepared::hand_over         the VMM receives its machine in one message
//! ```
//! A directory that others can see is published between the last two steps: a VMM must never run in
//! a directory that a sweep may remove. Dropping either value kills the VMM.

use crate::{
    create::{
        beginning::{Beginning, Source},
        parts::{MachineFiles, Parts},
    },
    guest::identity,
    home::{directory::SandboxDirectory, layout::Home},
    mounts,
    record::SandboxRecord,
    snapshot::lineage::{LineageError, keep_disks},
    vmm::{descriptors::LaunchError, launch::VmmProcess},
    volumes::open::OpenVolume,
    workspace,
};
use std::{fs::File, path::Path};

/// The read-only disks of a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disks<'a> {
    pub(crate) agent: &'a File,
    pub(crate) image: &'a File,
}

/// A VMM that waits for its machine, in a directory that is not complete yet.
#[derive(Debug)]
pub(crate) struct Launch {
    parts: Parts,
    vmm: VmmProcess,
    slots: Vec<File>,
    volumes: Vec<OpenVolume>,
    is_first: bool,
}

impl Launch {
    /// Spawns the VMM of a new directory, which has the files of the workspace. `volumes` are those of the
    /// record, in its order.
    pub(crate) fn new(
        home: &Home,
        directory: &SandboxDirectory,
        record: &SandboxRecord,
        program: &Path,
        volumes: Vec<OpenVolume>,
    ) -> Result<Self, LaunchError> {
        let slots = workspace::files::open(directory, record.workspace.as_ref())?;
        let parts = Parts::make(directory)?;
        let vmm = parts.spawn_vmm(home, directory, record, program)?;
        Ok(Self { parts, vmm, slots, volumes, is_first: true })
    }

    /// Spawns another VMM in the directory of a sandbox whose VMM has ended.
    pub(crate) fn again(
        home: &Home,
        directory: &SandboxDirectory,
        record: &SandboxRecord,
        program: &Path,
        volumes: Vec<OpenVolume>,
    ) -> Result<Self, LaunchError> {
        let slots = workspace::files::open(directory, record.workspace.as_ref())?;
        let parts = Parts::renew(directory)?;
        let vmm = parts.spawn_vmm(home, directory, record, program)?;
        Ok(Self { parts, vmm, slots, volumes, is_first: false })
    }

    /// Completes the directory for a machine that starts from `beginning`.
    pub(crate) fn prepare<'a>(
        self,
        directory: &SandboxDirectory,
        record: &SandboxRecord,
        beginning: Beginning<'a>,
        disks: Disks<'a>,
    ) -> Result<Prepared<'a>, LineageError> {
        identity::make_due(directory)?;
        workspace::mounting::make_due(directory)?;
        mounts::mounting::make_due(directory, record)?;
        keep_disks(directory, disks.agent, disks.image)?;
        let mut lineage = beginning.lineage();
        if self.is_first {
            lineage.write_first(directory)?;
        } else {
            lineage.complete(directory, beginning.files)?;
        }
        let Beginning { source, template, layers, .. } = beginning;
        let Self { parts, vmm, slots, volumes, .. } = self;
        Ok(Prepared { parts, vmm, disks, source, template, layers, slots, volumes })
    }
}

/// Whether a machine's vCPUs run as soon as it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// The vCPUs run immediately.
    Now,
    /// The vCPUs wait for a request.
    OnRequest,
}

/// A VMM that waits for its machine, in a directory that is complete.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    parts: Parts,
    vmm: VmmProcess,
    disks: Disks<'a>,
    source: Source<'a>,
    template: &'a File,
    layers: Vec<File>,
    slots: Vec<File>,
    volumes: Vec<OpenVolume>,
}

impl Prepared<'_> {
    /// Sends the VMM its machine. With `tie_to_launcher` the VMM ends when its launch channel is
    /// closed.
    pub(crate) fn hand_over(
        self,
        record: &SandboxRecord,
        start: Start,
        tie_to_launcher: bool,
    ) -> Result<VmmProcess, LaunchError> {
        let machine = MachineFiles {
            source: self.source,
            agent: self.disks.agent,
            image: self.disks.image,
            template: self.template,
            layers: &self.layers,
            slots: &self.slots,
            volumes: &self.volumes,
            tie_to_launcher,
            start: start == Start::Now,
        };
        self.parts.hand_over(&self.vmm, record, &machine)?;
        Ok(self.vmm)
    }
}
