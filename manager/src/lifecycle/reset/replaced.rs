//! Another VMM takes the place of the one of a sandbox, with a machine from the files that the reset leads to.

use super::ResetError;
use crate::{
    create::{
        beginning::{Beginning, Source},
        launch::{Disks, Launch, Start},
        started,
    },
    guest::interruption::{self, Interruption},
    home::{
        content::{self, Content},
        directory::SandboxDirectory,
        host::HostIdentity,
    },
    limits::{admission, disk_reservation::DiskReservation},
    network::pins::KeptPins,
    sandbox::Sandbox,
    snapshot::{
        error::SnapshotError,
        lineage::{Contents, Lineage, Origin, TEMPLATE, open_all},
        store::{ReadOnlyDisks, SnapshotFiles, StoredSnapshot, find_disk},
    },
    vmm::end,
    volumes,
};
use sandboxvm_images::bundle::{Bundle, Part};
use sandboxvm_protocol::{
    ids::SandboxName,
    machine::{MIB, MemorySize, VcpuCount},
};
use std::{fs::File, time::Duration};

/// A [`Place`](super::Place) with its files opened: what the new machine is restored from.
pub(super) enum Found<'a> {
    Beginning,
    Snapshot(&'a SandboxName, &'a StoredSnapshot),
    OwnDisk,
}

impl Sandbox {
    /// Ends the VMM and starts another in its place.
    pub(super) async fn begin_again(
        &self,
        bundle: &Bundle,
        lineage: &Lineage,
        from: Found<'_>,
        boot_timeout: Duration,
        only_the_guest: &mut (impl FnMut() + Send),
    ) -> Result<(), ResetError> {
        // A `prune` must not remove the directory while no VMM runs in it.
        let own = SandboxDirectory::open(self.directory.path().to_owned())?;
        if !own.try_claim()? {
            return Err(ResetError::Attended(self.label()));
        }
        // All checks that can fail are done while the old machine still runs.
        let directory = &self.directory;
        let template = directory.open_shared(TEMPLATE)?;
        let (mut opened, kernel);
        let mut beginning = match from {
            Found::Snapshot(name, snapshot) => {
                self.check_shape(name, snapshot)?;
                let host = HostIdentity::read().map_err(SnapshotError::from)?;
                opened = SnapshotFiles { template, ..snapshot.files(&host).await? };
                Beginning::restore(directory, snapshot, snapshot.manifest.contents.clone(), &mut opened)?
            }
            Found::OwnDisk => {
                kernel = self.same_kernel(bundle, &lineage.contents.kernel)?;
                Beginning::boot_own_disk(directory, lineage, &kernel, &template)?
            }
            Found::Beginning => match &lineage.origin {
                Origin::Fork { of } => {
                    return Err(ResetError::Fork { sandbox: self.label(), of: of.clone() });
                }
                Origin::Boot => {
                    kernel = self.same_kernel(bundle, &lineage.contents.kernel)?;
                    Beginning::boot_empty(directory, lineage.contents.clone(), &kernel, &template)?
                }
                Origin::Snapshot { state, memory, disk, .. } => {
                    lineage.check_origin(directory).await.map_err(SnapshotError::from)?;
                    opened = SnapshotFiles {
                        state: directory.open_shared(state)?,
                        memory: open_all(directory, memory)?,
                        disk: open_all(directory, disk)?,
                        template,
                    };
                    Beginning::restore_own(directory, lineage, &mut opened)?
                }
            },
        };
        let ReadOnlyDisks { agent: (agent, _), image: (image, _) } =
            self.disks_of(&from, bundle, &beginning.contents)?;
        bundle.open_part(Part::Vmm)?;
        // Of the snapshot if there is one, since it says which versions of the volumes its memory has.
        let mounts = match from {
            Found::Snapshot(_, snapshot) => &snapshot.manifest.mounts,
            Found::Beginning => &self.record.mounts,
            Found::OwnDisk => &self.record.mounts.clone().without_versions(),
        };
        // A machine that runs has the lock of a volume that it can write, so no other changed that volume,
        // and it can be opened only after the machine's end.
        let waits_for_the_end = mounts.writable_volume().is_some() && self.state()?.is_live();
        let volumes = if waits_for_the_end { None } else { Some(volumes::open::open_all(&self.home, mounts)?) };
        self.admit_again()?;
        let room = DiskReservation::for_a_start(directory)?;
        interruption::announce(directory, Interruption::Reset);
        // The processes of the network end with the machine, so what they know is kept.
        KeptPins::of(self.network_pins(true).await).write(directory)?;
        end::now(&self.home, directory, self.id()).await?;
        drop(room);
        let program = bundle.path(Part::Vmm);
        let volumes = match volumes {
            Some(volumes) => volumes,
            None => volumes::open::open_all(&self.home, mounts)?,
        };
        let launch = Launch::again(&self.home, directory, &self.record, program, volumes)?;
        beginning.contents.vmm = content::at(&self.home, program)?;
        let boots = matches!(beginning.source, Source::Kernel(_));
        let prepared = launch.prepare(directory, &self.record, beginning, Disks { agent: &agent, image: &image })?;
        let vmm = prepared.hand_over(&self.record, Start::Now, false)?;
        if boots {
            // The kernel that boots reads what the guest wrote to its disk, so the guest decides
            // how long the boot takes.
            only_the_guest();
        }
        started::attend(self, vmm, boot_timeout).await.map_err(|error| ResetError::Start(Box::new(error)))
    }

    /// Opens the read-only disks of the new machine.
    fn disks_of(&self, from: &Found<'_>, bundle: &Bundle, contents: &Contents) -> Result<ReadOnlyDisks, ResetError> {
        Ok(match from {
            Found::Snapshot(_, snapshot) => snapshot.read_only_disks(&self.home, bundle)?,
            Found::Beginning | Found::OwnDisk => ReadOnlyDisks {
                agent: find_disk(&self.home, &self.directory, bundle, Part::Agent, &contents.agent)?,
                image: find_disk(&self.home, &self.directory, bundle, Part::Image, &contents.image)?,
            },
        })
    }

    /// Reserves memory of the host for a sandbox that does not run and is started again. The files
    /// of its disk exist already.
    fn admit_again(&self) -> Result<(), ResetError> {
        if !self.state()?.is_live() {
            let memory = self.record.memory_bytes;
            let admitted = admission::admit(&self.home, self.id(), memory, 0);
            admitted.inspect_err(|error| self.trail().note_refusal(memory, 0, error))?;
        }
        Ok(())
    }

    /// Rejects a snapshot of another kind of machine.
    fn check_shape(&self, name: &SandboxName, snapshot: &StoredSnapshot) -> Result<(), ResetError> {
        let (manifest, record) = (&snapshot.manifest, &self.record);
        let shape = |vcpus: VcpuCount, memory: MemorySize, disk: u64, has_card: bool| {
            let card = if has_card { "a network card" } else { "no network card" };
            format!("{vcpus} vCPUs, {} MiB of memory, {} MiB of disk and {card}", memory.mib(), disk / MIB)
        };
        let theirs = shape(manifest.vcpus, manifest.memory_bytes, manifest.disk_bytes, manifest.network_card);
        let ours = shape(record.vcpus, record.memory_bytes, record.disk_bytes, record.network_card);
        if theirs == ours {
            let has_workspace = snapshot.has_workspace_of(record, &self.directory)?;
            let other = ResetError::OtherWorkspace { sandbox: self.label(), snapshot: name.clone() };
            if !has_workspace {
                return Err(other);
            }
            let has_mounts = manifest.mounts.fits(&record.mounts) && manifest.read_only_root == record.read_only_root;
            let other = ResetError::OtherMounts { sandbox: self.label(), snapshot: name.clone() };
            return if has_mounts { Ok(()) } else { Err(other) };
        }
        Err(ResetError::OtherMachine { sandbox: self.label(), ours, snapshot: name.clone(), theirs })
    }

    /// Opens the kernel that the sandbox booted, by content: at its old path, or else the bundle's.
    fn same_kernel(&self, bundle: &Bundle, content: &Content) -> Result<File, ResetError> {
        content::find(&self.home, content, &bundle.kernel)
            .ok_or_else(|| ResetError::OtherKernel { sandbox: self.label(), path: content.path.clone() })
    }
}
