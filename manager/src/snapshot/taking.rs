//! Making a snapshot of a running sandbox. The VMM writes state and memory into files of a staged directory; the rest
//! is links to what the sandbox has already. A kill -9 at any moment leaves a staged directory that a sweep takes away,
//! or a whole snapshot.

use super::{
    error::SnapshotError,
    manifest::{FORMAT, MANIFEST, MemoryFile, SnapshotManifest},
    pagemap,
    seal::{Seal, Seals},
    store::STATE,
};
use crate::{
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
    sandbox::Sandbox,
    snapshot::lineage::{ChangeLock, Files, Kind, Lineage, free_name, share_disks},
    vmm::{control::ControlError, descriptors::LaunchFiles, wire::WireError},
};
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

/// Writing memory, and syncing it, to a slow disk.
const WRITTEN_WITHIN: Duration = Duration::from_secs(600);
/// The new memory file before its number is known.
const NEW_MEMORY: &str = "memory.new";

/// A snapshot that was made.
#[derive(Debug)]
pub struct SnapshotTaken {
    /// What it is.
    pub manifest: SnapshotManifest,
    /// What it took.
    pub report: SnapshotReport,
}

impl Sandbox {
    /// Makes a snapshot of all of it. The sandbox stands still for some milliseconds and runs on.
    ///
    /// # Errors
    /// Every [`SnapshotError`]. The sandbox runs on, and nothing of the snapshot is left.
    pub async fn snapshot(&self, name: SandboxName) -> Result<SnapshotTaken, SnapshotError> {
        let _in_use = InUse::begin(&self.directory).await?;
        self.change().await?.snapshot(name).await
    }
}

impl Manager {
    /// True when a snapshot of this name is there.
    #[must_use]
    pub fn has_snapshot(&self, name: &SandboxName) -> bool {
        self.home.snapshot(name).exists()
    }
}

/// Makes a snapshot with a name where the home's file system has room for all of the sandbox's memory.
pub(crate) async fn take_named(
    sandbox: &Sandbox,
    change: &ChangeLock,
    name: SandboxName,
) -> Result<SnapshotTaken, SnapshotError> {
    let destination = sandbox.home.snapshot(&name);
    if destination.exists() {
        return Err(SnapshotError::Taken(name));
    }
    admission::check_room(&sandbox.home, sandbox.record.memory_bytes.bytes())?;
    take(sandbox, change, Some(name), &destination).await
}

/// Makes a snapshot of `sandbox` at `destination`, where nothing may be yet.
pub(crate) async fn take(
    sandbox: &Sandbox,
    _change: &ChangeLock,
    name: Option<SandboxName>,
    destination: &Path,
) -> Result<SnapshotTaken, SnapshotError> {
    let directory = &sandbox.directory;
    let _in_use = InUse::begin(directory).await?;
    let state = sandbox.state()?;
    let not_running = || SnapshotError::NotRunning { sandbox: sandbox.label(), state: state.clone() };
    if !state.is_live() {
        return Err(not_running());
    }
    let mut control = sandbox.control().await?;
    // See `Lineage::read`.
    control.stats().await?;
    let mut lineage = Lineage::read(directory)?;
    sandbox.flatten_when_long(&mut control, &mut lineage).await?;
    let pagemap = pagemap::of_vmm(directory)?.ok_or_else(not_running)?;
    let staged = StagedSnapshot::begin(&sandbox.home)?;
    let before = lineage.files.clone();

    let files = NewFiles::make(directory, &staged.directory)?;
    let mut disk = before.disk.clone();
    disk.push(files.top_name.clone());
    if let Err(error) = lineage.announce(directory, Files { disk: disk.clone(), baseline: None }) {
        // On a full disk: the VMM was not asked for anything yet. A file that stays is taken away by the next change.
        let _ = directory.unlink(&files.top_name);
        return Err(error.into());
    }
    let mut sent = LaunchFiles::default();
    let request = ControlRequest::Snapshot(SnapshotRequest {
        state: sent.add(&files.state),
        memory: sent.add(&files.memory),
        pagemap: sent.add(&pagemap),
        disk_tops: vec![sent.add(&files.top)],
        full: before.baseline.is_none(),
    });
    let report = match control.request_with(&request, &sent, WRITTEN_WITHIN).await? {
        ControlReply::Snapshot(report) => report,
        ControlReply::Failed { message } => {
            // First, because it makes room on a full disk.
            drop(staged);
            refused(&mut lineage, directory, before.baseline);
            return Err(ControlError::Refused(message).into());
        }
        _ => return Err(ControlError::from(WireError::Unexpected("another request's reply")).into()),
    };

    let memory_name = free_name(directory, Kind::Memory)?;
    directory.link_from(&staged.directory, NEW_MEMORY, &memory_name)?;
    let parent = lineage.parent.take().filter(|_| !report.self_contained);
    let mut baseline = before.baseline.filter(|_| !report.self_contained).unwrap_or_default();
    baseline.push(memory_name);
    let names = baseline.iter().chain(&before.disk);
    let seals = seal_all(directory, &lineage.seals, names.clone()).await?;
    let own_names =
        (0..baseline.len()).map(|n| Kind::Memory.name(n)).chain((0..before.disk.len()).map(|n| Kind::Disk.name(n)));
    let sealed = own_names.zip(names).filter_map(|(own, name)| Some((own, seals.get(name)?.clone())));
    let state_seal = seal(&files.state).await.map_err(|error| staged.directory.error("read", STATE, error))?;
    let manifest = SnapshotManifest {
        format: FORMAT,
        id: staged.id.clone(),
        name: name.clone(),
        created_at: SystemTime::now(),
        sandbox: sandbox.record.id.clone(),
        parent,
        vcpus: sandbox.record.vcpus,
        memory_bytes: sandbox.record.memory_bytes,
        disk_bytes: sandbox.record.disk_bytes,
        env: sandbox.record.env.clone(),
        host: HostIdentity::read()?,
        contents: lineage.contents.clone(),
        memory: (0..baseline.len())
            .map(|n| MemoryFile { name: Kind::Memory.name(n), size: sandbox.record.memory_bytes.bytes() })
            .collect(),
        disk: (0..before.disk.len()).map(|n| Kind::Disk.name(n)).collect(),
        seals: sealed.chain([(STATE.to_owned(), state_seal)]).collect(),
    };
    staged.fill(directory, &baseline, &before.disk)?;
    manifest.write(&staged.directory)?;
    lineage.parent = Some(staged.id.clone());
    lineage.seals.extend(seals);
    lineage.complete(directory, Files { disk, baseline: Some(baseline) })?;
    staged.publish(name, destination)?;
    Ok(SnapshotTaken { manifest, report })
}

/// Seals files that are not written to any more, reading those that have none in `known` and those that were written to
/// since: that they were changed is found here too, and not sealed over.
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

/// Others go on while it is synced and read: a layer may have gigabytes.
async fn seal(file: &File) -> io::Result<Seal> {
    let file = file.try_clone()?;
    tokio::task::spawn_blocking(move || Seal::of(&file)).await.map_err(io::Error::other)?
}

/// The snapshot failed in the VMM, which compares the next one with what it did before.
fn refused(lineage: &mut Lineage, directory: &SandboxDirectory, baseline: Option<Vec<String>>) {
    // Where this cannot be written down, what was announced is judged again next time.
    if lineage.conclude(directory).is_ok() && lineage.files.baseline != baseline {
        lineage.files.baseline = baseline;
        let _ = lineage.write(directory);
    }
}

/// What the VMM writes to.
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

/// A snapshot that nobody can see yet; dropping it takes everything back.
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

    /// Links the files that the sandbox has.
    fn fill(&self, sandbox: &SandboxDirectory, memory: &[String], disk: &[String]) -> Result<(), DirectoryError> {
        self.directory.unlink(NEW_MEMORY)?;
        for (kind, names) in [(Kind::Memory, memory), (Kind::Disk, disk)] {
            for (number, name) in names.iter().enumerate() {
                self.directory.link_from(sandbox, name, &kind.name(number))?;
            }
        }
        share_disks(sandbox, &self.directory)
    }

    /// Makes it durable, then visible.
    fn publish(mut self, name: Option<SandboxName>, destination: &Path) -> Result<(), SnapshotError> {
        let manifest = self.directory.open_file(MANIFEST, OFlags::RDONLY)?;
        manifest.sync_all().map_err(|error| self.directory.error("sync", MANIFEST, error))?;
        self.directory.sync()?;
        match self.directory.rename_to(destination.to_owned()) {
            Ok(()) => self.published = true,
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
            // The caller has a better error to report; a sweep takes what stays.
            if self.directory.rename_to(path.clone()).is_ok() {
                let _ = trash::delete(&path);
            }
        }
    }
}
