//! Takes a snapshot of a running sandbox. The VMM writes state and memory into files of a staged
//! directory; the rest are links to files that the sandbox has. If this process is killed at any
//! moment, it leaves either a staged directory that a sweep removes, or a complete snapshot.

use super::{
    error::SnapshotError,
    manifest::{FORMAT, MANIFEST, MemoryFile, SnapshotManifest},
    pagemap,
    seal::{Seal, Seals},
    store::{self, STATE},
};
use crate::{
    audit::Event,
    guest::in_use::InUse,
    home::{
        directory::{DirectoryError, SandboxDirectory},
        host::HostIdentity,
        ids::new_id,
        layout::Home,
        staging::new_staged,
        trash,
    },
    limits::admission,
    manager::Manager,
    mounts::Mounts,
    sandbox::Sandbox,
    snapshot::{
        change::{Change, Running},
        flatten::flatten_when_long,
        lineage::{Files, Kind, Lineage, free_name, share_disks},
    },
    vmm::{control::ControlError, descriptors::LaunchFiles, wire::WireError},
    volumes,
};
use futures_util::future::BoxFuture;
use rustix::fs::OFlags;
use sandboxvm_protocol::{
    ids::{SandboxId, SandboxName},
    vmm::{ControlReply, ControlRequest, SnapshotReport, SnapshotRequest},
};
use std::{
    fs::File,
    io,
    path::Path,
    time::{Duration, SystemTime},
};

/// Maximum time to write memory to a slow disk and sync it.
const WRITTEN_WITHIN: Duration = Duration::from_secs(600);
/// Name of the new memory file before its number is known.
const NEW_MEMORY: &str = "memory.new";

/// A snapshot that was taken.
#[derive(Debug)]
pub struct SnapshotTaken {
    /// The description of the snapshot.
    pub manifest: SnapshotManifest,
    /// What the VMM reports about its work.
    pub report: SnapshotReport,
}

impl Sandbox {
    /// Takes a snapshot of memory, disk and processes. The sandbox is paused for some milliseconds
    /// and then keeps running.
    ///
    /// # Errors
    /// Every [`SnapshotError`]. The sandbox keeps running, and nothing of the snapshot is left.
    pub async fn snapshot(&self, name: SandboxName) -> Result<SnapshotTaken, SnapshotError> {
        Change::begin(self).await?.snapshot(name).await
    }

    /// Takes a snapshot like [`Self::snapshot`], in place of an earlier one of this name, which stays until the new one
    /// is complete.
    ///
    /// # Errors
    /// Every [`SnapshotError`] but [`SnapshotError::Taken`].
    pub async fn replace_snapshot(&self, name: SandboxName) -> Result<SnapshotTaken, SnapshotError> {
        Change::begin(self).await?.take_named(name, Earlier::Replaced).await
    }
}

/// What becomes of an earlier snapshot of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// It stays, and there is no new one.
    Stays,
    /// The new one takes its place.
    Replaced,
}

impl Change<'_> {
    /// Takes a snapshot like [`Sandbox::snapshot`].
    ///
    /// # Errors
    /// Every [`SnapshotError`].
    pub async fn snapshot(&self, name: SandboxName) -> Result<SnapshotTaken, SnapshotError> {
        self.take_named(name, Earlier::Stays).await
    }

    async fn take_named(&self, name: SandboxName, earlier: Earlier) -> Result<SnapshotTaken, SnapshotError> {
        // A caller that only took the lock does not keep the idle rule from pausing the sandbox.
        let _in_use = InUse::begin(&self.sandbox().directory).await?;
        let taken = take_named(self, name.clone(), earlier).await?;
        self.sandbox().trail().note(Event::SnapshotCreated { snapshot: name });
        Ok(taken)
    }
}

impl Manager {
    /// Returns true if a snapshot has this name.
    #[must_use]
    pub fn has_snapshot(&self, name: &SandboxName) -> bool {
        self.home.snapshot(name).exists()
    }
}

/// Takes a named snapshot if the file system of the home has room for all memory of the sandbox.
pub(crate) async fn take_named(
    change: &Change<'_>,
    name: SandboxName,
    earlier: Earlier,
) -> Result<SnapshotTaken, SnapshotError> {
    let sandbox = change.sandbox();
    if let Some(volume) = sandbox.record.mounts.writable_volume() {
        return Err(SnapshotError::WritableVolume { sandbox: sandbox.label(), volume: volume.clone() });
    }
    if sandbox.record.mounts.has_shared_volume() {
        return Err(SnapshotError::SharedVolume(sandbox.label()));
    }
    let destination = sandbox.home.snapshot(&name);
    if earlier == Earlier::Stays && destination.exists() {
        return Err(SnapshotError::Taken(name));
    }
    admission::check_room(&sandbox.home, sandbox.record.memory_bytes.bytes())?;
    take(change, Some(name), &destination, earlier).await
}

/// Takes a snapshot at `destination`.
pub(crate) fn take<'a>(
    change: &'a Change<'a>,
    name: Option<SandboxName>,
    destination: &'a Path,
    earlier: Earlier,
) -> BoxFuture<'a, Result<SnapshotTaken, SnapshotError>> {
    Box::pin(async move {
        let mut running = change.running().await?;
        flatten_when_long(&mut running).await?;
        let staged = StagedSnapshot::begin(&running.sandbox.home)?;
        // A ready snapshot is of a machine in which nothing is mounted.
        let held = match name {
            Some(_) => Some(running.sandbox.hold_shares().await?),
            None => None,
        };
        let written = write(&mut running, staged).await;
        if let Some(held) = held {
            held.release().await;
        }
        let (staged, written) = written?;
        let seals = seal_all(running.directory(), &running.lineage.seals, written.names()).await?;
        let manifest = written.manifest(&running, &staged, name.clone(), &seals).await?;
        staged.fill(running.directory(), &written.memory, &written.disk)?;
        manifest.write(&staged.directory)?;
        running.lineage.parent = Some(staged.id.clone());
        running.lineage.seals.extend(seals);
        let disk = written.disk.iter().cloned().chain([written.top.clone()]).collect();
        running.complete(Files { disk, baseline: Some(written.memory) })?;
        staged.publish(name, destination, earlier)?;
        Ok(SnapshotTaken { manifest, report: written.report })
    })
}

/// Makes the VMM write state and memory and start a new top layer. Returns what the snapshot
/// consists of.
async fn write<'h>(
    running: &mut Running<'_>,
    staged: StagedSnapshot<'h>,
) -> Result<(StagedSnapshot<'h>, Written), SnapshotError> {
    let directory = running.directory();
    let Some(pagemap) = pagemap::of_vmm(directory)? else {
        let sandbox = running.sandbox;
        return Err(SnapshotError::NotRunning { sandbox: sandbox.label(), state: sandbox.state()? });
    };
    let Files { disk, baseline } = running.lineage.files.clone();
    let files = NewFiles::make(directory, &staged.directory)?;
    let announced = disk.iter().cloned().chain([files.top_name.clone()]).collect();
    running.announce(Files { disk: announced, baseline: None }, &files.top_name)?;
    let mut sent = LaunchFiles::default();
    let request = ControlRequest::Snapshot(SnapshotRequest {
        state: sent.add(&files.state),
        memory: sent.add(&files.memory),
        pagemap: sent.add(&pagemap),
        disk_tops: vec![sent.add(&files.top)],
        full: baseline.is_none(),
    });
    let report = match running.control.request_with(request, &sent, WRITTEN_WITHIN).await? {
        Ok(ControlReply::Snapshot(report)) => report,
        Err(refusal) => {
            // Dropped first, because that frees space on a full disk.
            drop(staged);
            refused(&mut running.lineage, directory, baseline);
            return Err(ControlError::from(refusal).into());
        }
        Ok(_) => return Err(ControlError::from(WireError::Unexpected("another request's reply")).into()),
    };
    let memory_name = free_name(directory, Kind::Memory)?;
    directory.link_from(&staged.directory, NEW_MEMORY, &memory_name)?;
    let mut memory = baseline.filter(|_| !report.self_contained).unwrap_or_default();
    memory.push(memory_name);
    Ok((staged, Written { state: files.state, top: files.top_name, memory, disk, report }))
}

/// The result of the VMM, and the files of the sandbox that the snapshot consists of.
struct Written {
    state: File,
    /// The new top layer, which does not belong to the snapshot.
    top: String,
    memory: Vec<String>,
    disk: Vec<String>,
    report: SnapshotReport,
}

impl Written {
    /// Returns the files of the sandbox in the order of the manifest.
    fn names(&self) -> impl Iterator<Item = &String> {
        self.memory.iter().chain(&self.disk)
    }

    async fn manifest(
        &self,
        running: &Running<'_>,
        staged: &StagedSnapshot<'_>,
        name: Option<SandboxName>,
        seals: &Seals,
    ) -> Result<SnapshotManifest, SnapshotError> {
        let (record, lineage) = (&running.sandbox.record, &running.lineage);
        let memory: Vec<String> = (0..self.memory.len()).map(|n| Kind::Memory.name(n)).collect();
        let disk: Vec<String> = (0..self.disk.len()).map(|n| Kind::Disk.name(n)).collect();
        let own_names = memory.iter().chain(&disk).zip(self.names());
        let sealed = own_names.filter_map(|(own, name)| Some((own.clone(), seals.get(name)?.clone())));
        let state_seal = seal(&self.state).await.map_err(|error| staged.directory.error("read", STATE, error))?;
        Ok(SnapshotManifest {
            format: FORMAT,
            id: staged.id.clone(),
            name: name.clone(),
            created_at: SystemTime::now(),
            sandbox: record.id.clone(),
            parent: lineage.parent.clone().filter(|_| !self.report.self_contained),
            vcpus: record.vcpus,
            memory_bytes: record.memory_bytes,
            disk_bytes: record.disk_bytes,
            env: record.env.clone(),
            host: HostIdentity::read()?,
            contents: lineage.contents.clone(),
            seals: sealed.chain([(STATE.to_owned(), state_seal)]).collect(),
            network_card: record.network_card,
            image_defaults: record.image_defaults.clone(),
            workspace: record.workspace.clone().filter(|_| name.is_some()),
            mounts: match name {
                Some(_) => volumes::open::with_versions(&running.sandbox.home, &record.mounts)?,
                None => Mounts::default(),
            },
            read_only_root: record.read_only_root && name.is_some(),
            memory: memory.into_iter().map(|name| MemoryFile { name, size: record.memory_bytes.bytes() }).collect(),
            disk,
        })
    }
}

/// Seals files that are not written to any more. Reads those that have no seal in `known` and those
/// that were written to since: a change is detected here as well, and not sealed over.
async fn seal_all(
    directory: &SandboxDirectory,
    known: &Seals,
    names: impl Iterator<Item = &String>,
) -> Result<Seals, SnapshotError> {
    let mut seals = Vec::new();
    for name in names {
        let file = directory.open_shared(name)?;
        let known = known.get(name);
        let sealed = match known {
            Some(seal) if seal.is_untouched(&file).unwrap_or(false) => seal.clone(),
            _ => seal(&file).await.map_err(|error| directory.error("read", name, error))?,
        };
        if known.is_some_and(|known| known.blake3 != sealed.blake3) {
            return Err(SnapshotError::Changed(directory.path().join(name)));
        }
        seals.push((name.clone(), sealed));
    }
    Ok(seals.into_iter().collect())
}

/// Seals a file on another thread, because syncing and reading a layer of gigabytes takes long.
async fn seal(file: &File) -> io::Result<Seal> {
    let file = file.try_clone()?;
    tokio::task::spawn_blocking(move || Seal::of(&file)).await.map_err(io::Error::other)?
}

/// Restores the baseline after the VMM refused the snapshot: it compares the next one with the same
/// snapshot as before.
fn refused(lineage: &mut Lineage, directory: &SandboxDirectory, baseline: Option<Vec<String>>) {
    // If this cannot be written, the next change decides the announced change again.
    if lineage.conclude(directory).is_ok() && lineage.files.baseline != baseline {
        lineage.files.baseline = baseline;
        let _ = lineage.write(directory);
    }
}

/// The files that the VMM writes to.
struct NewFiles {
    state: File,
    memory: File,
    top: File,
    top_name: String,
}

impl NewFiles {
    fn make(sandbox: &SandboxDirectory, staged: &SandboxDirectory) -> Result<Self, DirectoryError> {
        let top_name = free_name(sandbox, Kind::Disk)?;
        Ok(Self {
            state: staged.create_file(STATE)?,
            memory: staged.create_file(NEW_MEMORY)?,
            top: sandbox.create_file(&top_name)?,
            top_name,
        })
    }
}

/// A snapshot that no other process can see yet. Dropping it removes everything again.
struct StagedSnapshot<'a> {
    home: &'a Home,
    directory: SandboxDirectory,
    id: SandboxId,
    published: bool,
}

impl<'a> StagedSnapshot<'a> {
    fn begin(home: &'a Home) -> Result<Self, SnapshotError> {
        let id = new_id().map_err(SnapshotError::Entropy)?;
        Ok(Self { home, directory: new_staged(home, &id)?, id, published: false })
    }

    /// Links the files of the sandbox into the snapshot.
    fn fill(&self, sandbox: &SandboxDirectory, memory: &[String], disk: &[String]) -> Result<(), DirectoryError> {
        self.directory.unlink(NEW_MEMORY)?;
        for (kind, names) in [(Kind::Memory, memory), (Kind::Disk, disk)] {
            for (number, name) in names.iter().enumerate() {
                self.directory.link_from(sandbox, name, &kind.name(number))?;
            }
        }
        share_disks(sandbox, &self.directory)
    }

    /// Makes the snapshot durable, then moves it to its destination.
    fn publish(mut self, name: Option<SandboxName>, destination: &Path, earlier: Earlier) -> Result<(), SnapshotError> {
        let manifest = self.directory.open_file(MANIFEST, OFlags::RDONLY)?;
        manifest.sync_all().map_err(|error| self.directory.error("sync", MANIFEST, error))?;
        self.directory.sync()?;
        match self.directory.rename_to(destination.to_owned()) {
            Ok(()) => self.published = true,
            Err(error) if error.is_already_there() && earlier == Earlier::Replaced => {
                let replaced = self.directory.exchange_with(destination.to_owned())?;
                self.published = true;
                // The new one is in place; a sweep removes what stays.
                let _ = store::remove_directory(self.home, replaced);
            }
            Err(error) if error.is_already_there() && name.is_some() => {
                return Err(SnapshotError::Taken(name.expect("checked in the pattern")));
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(parent) = destination.parent() {
            SandboxDirectory::open(parent.to_owned())?.sync()?;
        }
        Ok(())
    }
}

impl Drop for StagedSnapshot<'_> {
    fn drop(&mut self) {
        if !self.published {
            let path = self.home.trash().join(self.id.as_str());
            // The caller has a better error to report; a sweep removes what stays.
            if self.directory.rename_to(path.clone()).is_ok() {
                let _ = trash::delete(&path);
            }
        }
    }
}
