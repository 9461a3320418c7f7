//! Existing snapshots: opens, lists and removes them, and links their files into a sandbox. May not
//! make or change one.

use super::{
    error::SnapshotError,
    manifest::{MANIFEST, MemoryFile, SnapshotManifest},
    seal::Seals,
};
use crate::{
    home::{
        content::{self, Content},
        directory::{DirectoryError, SandboxDirectory},
        host::HostIdentity,
        ids::new_id,
        layout::Home,
        trash,
    },
    manager::Manager,
    record::{FileRecord, SandboxRecord},
    snapshot::lineage::{AGENT, IMAGE, Kind, Origin, TEMPLATE, free_name, open_all},
    workspace,
};
use sandboxvm_images::{
    bundle::{Bundle, Part},
    file_version::FileVersion,
};
use sandboxvm_protocol::ids::SandboxName;
use serde::Serialize;
use std::{
    fs::{self, File},
    path::PathBuf,
};

pub(super) const STATE: &str = "state";

/// A snapshot with an open directory: removing it meanwhile removes its names, not the files that
/// are open.
#[derive(Debug)]
pub(crate) struct StoredSnapshot {
    directory: SandboxDirectory,
    pub(crate) manifest: SnapshotManifest,
}

/// A snapshot in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedSnapshot {
    /// The description of the snapshot.
    #[serde(flatten)]
    pub manifest: SnapshotManifest,
    /// Why the snapshot cannot be used, if it is known to be damaged.
    pub damage: Option<String>,
}

/// A snapshot whose manifest cannot be read.
#[derive(Debug)]
pub struct UnreadableSnapshot {
    /// Name of its directory.
    pub name: String,
    /// Why it cannot be read.
    pub error: SnapshotError,
}

/// The files of a snapshot, open for reading.
#[derive(Debug)]
pub(crate) struct SnapshotFiles {
    pub(crate) state: File,
    pub(crate) memory: Vec<File>,
    pub(crate) disk: Vec<File>,
    pub(crate) template: File,
}

/// The read-only disks of a machine.
#[derive(Debug)]
pub(crate) struct ReadOnlyDisks {
    pub(crate) agent: (File, FileRecord),
    pub(crate) image: (File, FileRecord),
}

impl StoredSnapshot {
    /// Opens a snapshot. Returns `None` if there is none at `path`.
    pub(crate) fn open(path: PathBuf) -> Result<Option<Self>, SnapshotError> {
        let directory = match SandboxDirectory::open(path) {
            Ok(directory) => directory,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !directory.has(MANIFEST) && !directory.exists() {
            // It was removed between the two steps.
            return Ok(None);
        }
        let manifest = SnapshotManifest::read(&directory)?;
        Ok(Some(Self { directory, manifest }))
    }

    /// Opens the snapshot with this name.
    pub(crate) fn named(home: &Home, name: &SandboxName) -> Result<Self, SnapshotError> {
        Self::open(home.snapshot(name))?.ok_or_else(|| SnapshotError::Unknown(name.to_string()))
    }

    /// Opens the files of the snapshot. Rejects a host on which it cannot be restored.
    pub(crate) async fn files(&self, here: &HostIdentity) -> Result<SnapshotFiles, SnapshotError> {
        if let Some(difference) = self.manifest.host.difference(here) {
            return Err(SnapshotError::OtherHost(difference));
        }
        let names: Vec<String> = self.manifest.memory.iter().map(|file| file.name.clone()).collect();
        let memory = open_all(&self.directory, &names)?;
        for (file, recorded) in memory.iter().zip(&self.manifest.memory) {
            self.check_length(recorded, file)?;
        }
        let disk = open_all(&self.directory, &self.manifest.disk)?;
        let state = self.directory.open_shared(STATE)?;
        self.manifest.seals.check(&self.directory, STATE, &state).await?;
        for (name, file) in names.iter().zip(&memory).chain(self.manifest.disk.iter().zip(&disk)) {
            self.manifest.seals.check(&self.directory, name, file).await?;
        }
        Ok(SnapshotFiles { state, memory, disk, template: self.directory.open_shared(TEMPLATE)? })
    }

    /// Returns why the snapshot cannot be used, as far as this can be found out without reading
    /// files that were not written to since it was made.
    fn damage(&self) -> Option<SnapshotError> {
        let Self { directory, manifest } = self;
        let check = || {
            for recorded in &manifest.memory {
                self.check_length(recorded, &directory.open_shared(&recorded.name)?)?;
            }
            for name in manifest.disk.iter().map(String::as_str).chain([STATE]) {
                let file = directory.open_shared(name)?;
                let Some(seal) = manifest.seals.get(name) else { continue };
                let is_whole = seal.is_untouched(&file).and_then(|untouched| Ok(untouched || seal.verify(&file)?));
                if !is_whole.map_err(|error| directory.error("read", name, error))? {
                    return Err(SnapshotError::Changed(directory.path().join(name)));
                }
            }
            directory.open_shared(TEMPLATE)?;
            workspace::files::open(directory, manifest.workspace.as_ref())?;
            Ok::<(), SnapshotError>(())
        };
        check().err()
    }

    /// Rejects a memory file whose length is not that of the machine's memory.
    fn check_length(&self, recorded: &MemoryFile, file: &File) -> Result<(), SnapshotError> {
        let path = self.directory.path().join(&recorded.name);
        let len = file.metadata().map_err(|error| DirectoryError::new("examine", &path, error))?.len();
        if len == recorded.size {
            return Ok(());
        }
        Err(SnapshotError::Truncated { path, len, expected: recorded.size })
    }

    /// Opens the layers of the disk and the template below them, which any host can use.
    pub(crate) async fn disk_files(&self) -> Result<(Vec<File>, File), SnapshotError> {
        let disk = open_all(&self.directory, &self.manifest.disk)?;
        for (name, file) in self.manifest.disk.iter().zip(&disk) {
            self.manifest.seals.check(&self.directory, name, file).await?;
        }
        Ok((disk, self.directory.open_shared(TEMPLATE)?))
    }

    /// Returns the seals of the files, under the names that they have in the directory that they
    /// were linked into.
    pub(crate) fn seals_as(&self, origin: &Origin) -> Seals {
        let Origin::Snapshot { state, memory, disk, .. } = origin else { return Seals::default() };
        let own_state = STATE.to_owned();
        let memory = self.manifest.memory.iter().map(|file| &file.name).zip(memory);
        let seal = |(name, own): (&String, &String)| Some((own.clone(), self.manifest.seals.get(name)?.clone()));
        memory.chain(self.manifest.disk.iter().zip(disk)).chain([(&own_state, state)]).filter_map(seal).collect()
    }

    /// Returns the paths and identities of the files. They differ for each snapshot with a name,
    /// and after a write.
    pub(crate) fn identities(&self) -> Result<Vec<(PathBuf, FileVersion)>, DirectoryError> {
        let memory = self.manifest.memory.iter().map(|file| file.name.as_str());
        let disk = self.manifest.disk.iter().map(String::as_str);
        let identity = |name: &str| {
            let file = self.directory.open_shared(name)?;
            let metadata = file.metadata().map_err(|error| self.directory.error("examine", name, error))?;
            Ok((self.directory.path().join(name), FileVersion::from(&metadata)))
        };
        memory.chain(disk).chain([STATE]).map(identity).collect()
    }

    /// Links the files into the directory of a sandbox, which keeps them as long as it may need
    /// them.
    pub(crate) fn link_into(&self, into: &SandboxDirectory) -> Result<Origin, SnapshotError> {
        let link = |from: &str, kind| {
            let name = free_name(into, kind)?;
            into.link_from(&self.directory, from, &name)?;
            Ok(name)
        };
        let origin = Origin::Snapshot {
            id: self.manifest.id.clone(),
            name: self.manifest.name.clone(),
            state: link(STATE, Kind::State)?,
            memory: self.manifest.memory.iter().map(|file| link(&file.name, Kind::Memory)).collect::<Result<_, _>>()?,
            disk: self.manifest.disk.iter().map(|name| link(name, Kind::Disk)).collect::<Result<_, SnapshotError>>()?,
        };
        if !into.has(TEMPLATE) {
            into.link_from(&self.directory, TEMPLATE, TEMPLATE)?;
        }
        Ok(origin)
    }

    /// Links the files of the machine's workspace into the directory of a new sandbox, unless that has
    /// its own: a ready snapshot is of a machine whose slots are empty.
    pub(crate) fn link_workspace_into(&self, into: &SandboxDirectory) -> Result<(), DirectoryError> {
        if self.manifest.workspace.is_none() || workspace::files::are_in(into) {
            return Ok(());
        }
        workspace::files::share(&self.directory, into)
    }

    /// Returns true if the machine has the workspace of a sandbox: the same files in its slots, or none
    /// as well.
    pub(crate) fn has_workspace_of(
        &self,
        record: &SandboxRecord,
        directory: &SandboxDirectory,
    ) -> Result<bool, DirectoryError> {
        match (&self.manifest.workspace, &record.workspace) {
            (None, None) => Ok(true),
            (Some(theirs), Some(ours)) if theirs == ours => {
                workspace::files::are_shared(ours, &self.directory, directory)
            }
            _ => Ok(false),
        }
    }

    /// Finds the read-only disks that the snapshot was made with: its own links, the old paths, or
    /// the files of `bundle`.
    pub(crate) fn read_only_disks(&self, home: &Home, bundle: &Bundle) -> Result<ReadOnlyDisks, SnapshotError> {
        let contents = &self.manifest.contents;
        Ok(ReadOnlyDisks {
            agent: find_disk(home, &self.directory, bundle, Part::Agent, &contents.agent)?,
            image: find_disk(home, &self.directory, bundle, Part::Image, &contents.image)?,
        })
    }
}

/// Opens the image or agent disk that a machine was made with, by content.
pub(crate) fn find_disk(
    home: &Home,
    directory: &SandboxDirectory,
    bundle: &Bundle,
    part: Part,
    content: &Content,
) -> Result<(File, FileRecord), SnapshotError> {
    let own = directory.path().join(if part == Part::Agent { AGENT } else { IMAGE });
    for path in [own.as_path(), &content.path, bundle.path(part)] {
        let mut there = bundle.clone();
        let place = if part == Part::Agent { &mut there.agent } else { &mut there.image };
        path.clone_into(place);
        let Ok(file) = there.open_part(part) else { continue };
        if let (Ok(metadata), Ok(found)) = (file.metadata(), content::of(home, &file, path))
            && found.sha256 == content.sha256
        {
            let record = FileRecord { path: content.path.clone(), identity: FileVersion::from(&metadata) };
            return Ok((file, record));
        }
    }
    Err(SnapshotError::OtherContent { part, sha256: content.sha256.clone(), path: content.path.clone() })
}

impl Manager {
    /// Returns all named snapshots, oldest first. A snapshot whose manifest is damaged is left out;
    /// using it reports the damage.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn snapshots(&self) -> Result<Vec<SnapshotManifest>, DirectoryError> {
        let path = self.home.snapshots();
        let entries = fs::read_dir(&path).map_err(|error| DirectoryError::new("list", &path, error))?;
        let mut manifests: Vec<SnapshotManifest> =
            entries.flatten().filter_map(|entry| Some(StoredSnapshot::open(entry.path()).ok()??.manifest)).collect();
        manifests.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(manifests)
    }

    /// Returns true if machines that are restored from this snapshot have a network card.
    ///
    /// # Errors
    /// When no snapshot has this name, or its manifest cannot be read.
    pub fn snapshot_has_network_card(&self, name: &SandboxName) -> Result<bool, SnapshotError> {
        Ok(StoredSnapshot::named(&self.home, name)?.manifest.network_card)
    }

    /// Like [`Self::snapshots`], with the damage of each snapshot, and with the directory names of
    /// snapshots whose manifest cannot be read. Files that were not written to since the snapshot
    /// was made are not read.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn listed_snapshots(&self) -> Result<(Vec<ListedSnapshot>, Vec<UnreadableSnapshot>), DirectoryError> {
        let path = self.home.snapshots();
        let entries = fs::read_dir(&path).map_err(|error| DirectoryError::new("list", &path, error))?;
        let (mut listed, mut unreadable) = (Vec::new(), Vec::new());
        for entry in entries.flatten() {
            match StoredSnapshot::open(entry.path()) {
                Ok(Some(snapshot)) => {
                    let damage = snapshot.damage().map(|damage| damage.to_string());
                    // A snapshot that was removed meanwhile is not listed.
                    if damage.is_none() || snapshot.directory.exists() {
                        listed.push(ListedSnapshot { manifest: snapshot.manifest, damage });
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    unreadable.push(UnreadableSnapshot { name, error });
                }
            }
        }
        let key = |listed: &ListedSnapshot| (listed.manifest.created_at, listed.manifest.id.clone());
        listed.sort_by_key(key);
        Ok((listed, unreadable))
    }

    /// Reads state, memory and disk layers of a snapshot completely, and checks that they are
    /// unchanged.
    ///
    /// # Errors
    /// [`SnapshotError::Changed`] when a file has changed.
    pub fn verify_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        let unknown = || SnapshotError::Unknown(name.to_owned());
        let called = SandboxName::try_from(name.to_owned()).map_err(|_| unknown())?;
        let snapshot = StoredSnapshot::named(&self.home, &called)?;
        let StoredSnapshot { directory, manifest } = &snapshot;
        let memory = manifest.memory.iter().map(|file| file.name.as_str());
        for file in memory.chain(manifest.disk.iter().map(String::as_str)).chain([STATE]) {
            let seal = manifest.seals.get(file).ok_or_else(|| SnapshotError::Unsealed(name.to_owned()))?;
            let read = directory.open_shared(file)?;
            if !seal.verify(&read).map_err(|error| directory.error("read", file, error))? {
                return Err(SnapshotError::Changed(directory.path().join(file)));
            }
        }
        Ok(())
    }

    /// Returns the names of all named snapshots, including those whose manifest is damaged.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn snapshot_names(&self) -> Result<Vec<SandboxName>, DirectoryError> {
        let path = self.home.snapshots();
        let entries = fs::read_dir(&path).map_err(|error| DirectoryError::new("list", &path, error))?;
        let name = |entry: fs::DirEntry| SandboxName::try_from(entry.file_name().into_string().ok()?).ok();
        let mut names: Vec<SandboxName> = entries.flatten().filter_map(name).collect();
        names.sort();
        Ok(names)
    }

    /// Removes a snapshot. Sandboxes and snapshots that were made from it keep the files that they
    /// need.
    ///
    /// # Errors
    /// When no snapshot has this name, or its files cannot be removed.
    pub fn remove_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        let unknown = || SnapshotError::Unknown(name.to_owned());
        let name = SandboxName::try_from(name.to_owned()).map_err(|_| unknown())?;
        remove_directory(&self.home, self.home.snapshot(&name))?.then_some(()).ok_or_else(unknown)
    }
}

/// Moves the directory of a snapshot to the trash in one step, then deletes it. Returns false if
/// there is none.
pub(crate) fn remove_directory(home: &Home, path: PathBuf) -> Result<bool, SnapshotError> {
    let mut directory = match SandboxDirectory::open(path) {
        Ok(directory) => directory,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let path = home.trash().join(new_id().map_err(SnapshotError::Entropy)?.as_str());
    match directory.rename_to(path.clone()) {
        Ok(()) => {}
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    trash::delete(&path)?;
    Ok(true)
}
