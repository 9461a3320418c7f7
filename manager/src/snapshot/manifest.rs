//! `manifest.json`: describes a snapshot, its files, and the hosts on which it can be restored. May
//! not name a file outside the snapshot's directory.

use super::seal::Seals;
use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        host::HostIdentity,
    },
    image_defaults::ImageDefaults,
    mounts::{MountedVolume, Mounts},
    record::rfc3339,
    snapshot::lineage::Contents,
    workspace::WorkspaceRecord,
};
use sandboxvm_protocol::{
    ids::{SandboxId, SandboxName},
    machine::{MemorySize, VcpuCount},
    vmm::MAX_MEMORY_FILES,
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::SystemTime};

pub(super) const MANIFEST: &str = "manifest.json";
const MAX_MANIFEST: u64 = 4 << 20;
/// Version of the manifest and of the set of files beside it.
pub(crate) const FORMAT: u32 = 1;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The manifest is not valid JSON of this format.
    #[error("the snapshot is damaged: {}: {source}", .path.display())]
    Damaged {
        /// Path of the manifest.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// The manifest has another version.
    #[error("the snapshot has an unsupported format: {} has format {found}, and this build reads {FORMAT}", .path.display())]
    Format {
        /// Path of the manifest.
        path: PathBuf,
        /// The version of the manifest.
        found: u32,
    },
    /// Parts of the manifest contradict each other.
    #[error("the snapshot is damaged: {}: {what}", .path.display())]
    Nonsense {
        /// Path of the manifest.
        path: PathBuf,
        /// The contradiction.
        what: &'static str,
    },
}

/// A memory file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// Its name in the directory of the snapshot.
    pub name: String,
    /// Its length in bytes, which is that of guest memory. The file is sparse.
    pub size: u64,
}

/// The description of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// Version of this file's format.
    pub format: u32,
    /// Unique ID of the snapshot, drawn like the ID of a sandbox and never used again.
    pub id: SandboxId,
    /// The name that the user gave it. A ready snapshot has none.
    pub name: Option<SandboxName>,
    /// The time at which it was taken.
    #[serde(with = "rfc3339")]
    pub created_at: SystemTime,
    /// The sandbox that it was taken of.
    pub sandbox: SandboxId,
    /// The snapshot that the memory of this one is a difference to.
    pub parent: Option<SandboxId>,
    /// Number of vCPUs.
    pub vcpus: VcpuCount,
    /// Size of the guest memory.
    pub memory_bytes: MemorySize,
    /// Size of the writable disk in bytes.
    pub disk_bytes: u64,
    /// `KEY=VALUE` entries, set for every process that is started in the sandbox.
    pub env: Vec<String>,
    /// The host on which it can be restored.
    pub host: HostIdentity,
    /// Hashes of VMM, kernel, image and agent.
    pub contents: Contents,
    /// Memory files, in the order in which the state file numbers them.
    pub memory: Vec<MemoryFile>,
    /// Disk layers above the template, oldest first.
    pub disk: Vec<String>,
    /// Seals of state, memory and disk layers. Empty in a snapshot of a version that did not make
    /// seals.
    #[serde(default)]
    pub seals: Seals,
    /// True if the machine has a network card. False in a snapshot of a version without cards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub network_card: bool,
    /// What the image says about processes. `None` for an image that is only a file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_defaults: Option<ImageDefaults>,
    /// The workspace of the machine, if it has one. A ready snapshot of a machine with slots has none:
    /// its slots are empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceRecord>,
    /// What is mounted beside the root, with the versions of the volumes. Nothing in a ready snapshot.
    #[serde(default, skip_serializing_if = "Mounts::is_empty")]
    pub mounts: Mounts,
    /// Processes cannot write the root. Never true in a ready snapshot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only_root: bool,
}

impl SnapshotManifest {
    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), ManifestError> {
        let path = directory.path().join(MANIFEST);
        let mut json = serde_json::to_vec_pretty(self).map_err(|source| ManifestError::Damaged { path, source })?;
        json.push(b'\n');
        Ok(directory.replace(MANIFEST, &json)?)
    }

    pub(super) fn read(directory: &SandboxDirectory) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = || directory.path().join(MANIFEST);
        let json = directory.read(MANIFEST, MAX_MANIFEST)?;
        let damaged = |source| ManifestError::Damaged { path: path(), source };
        let Format { format } = serde_json::from_slice(&json).map_err(damaged)?;
        if format != FORMAT {
            return Err(ManifestError::Format { path: path(), found: format });
        }
        let manifest: Self = serde_json::from_slice(&json).map_err(damaged)?;
        match manifest.nonsense() {
            Some(what) => Err(ManifestError::Nonsense { path: path(), what }),
            None => Ok(manifest),
        }
    }

    fn nonsense(&self) -> Option<&'static str> {
        if self.memory.is_empty() || self.memory.len() > MAX_MEMORY_FILES {
            return Some("it names no memory file, or too many");
        }
        if self.memory.iter().any(|file| file.size != self.memory_bytes.bytes()) {
            return Some("a memory file's size is not that of memory");
        }
        let mut names = self.memory.iter().map(|file| &file.name).chain(&self.disk).chain(self.seals.files());
        if self.disk.is_empty() || names.any(|name| name.contains('/') || name.starts_with('.')) {
            return Some("it names no disk layer, or a file outside its directory");
        }
        if self.workspace.as_ref().is_some_and(|workspace| !workspace.is_valid()) {
            return Some("its workspace has no slot, too many, or files with other names");
        }
        // No snapshot is taken of such a machine. A directory of snapshots from elsewhere must not choose
        // what of this host a sandbox can write; for the same reason, live shares are chosen again at each restore.
        let is_of_no_snapshot = |volume: MountedVolume<'_>| !volume.read_only || volume.version.is_none();
        if self.mounts.has_shared_volume() || self.mounts.volumes().any(is_of_no_snapshot) {
            return Some("it mounts a volume of the server, or a volume without a version or that can be written");
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{super::seal::Seal, *};
    use crate::{
        mounts::{MountSource, MountSpec, spec::tests::volume},
        snapshot::lineage::tests::contents,
    };
    use sandboxvm_images::file_version::FileVersion;
    use sandboxvm_protocol::machine::HostMode;
    use std::time::UNIX_EPOCH;

    pub(crate) fn example(id: &str) -> SnapshotManifest {
        let id = SandboxId::try_from(id.to_owned()).unwrap();
        SnapshotManifest {
            format: FORMAT,
            name: None,
            created_at: UNIX_EPOCH,
            sandbox: id.clone(),
            id,
            parent: None,
            vcpus: VcpuCount::ONE,
            memory_bytes: MemorySize::try_from(64 << 20).unwrap(),
            disk_bytes: 1 << 30,
            env: vec![],
            host: HostIdentity { mode: HostMode::Vmx, cpu: "c".into(), boot_id: "b".into() },
            contents: contents(),
            memory: vec![MemoryFile { name: "memory.0".into(), size: 64 << 20 }],
            disk: vec!["disk.0".into()],
            seals: Seals::default(),
            network_card: false,
            image_defaults: None,
            workspace: None,
            mounts: Mounts::default(),
            read_only_root: false,
        }
    }

    #[test]
    fn manifest_round_trips_and_damage_is_reported() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let manifest = example("abcdefgh");
        manifest.write(&directory).unwrap();
        assert_eq!(SnapshotManifest::read(&directory).unwrap(), manifest);

        let damage = |change: fn(&mut SnapshotManifest)| {
            let mut manifest = example("abcdefgh");
            change(&mut manifest);
            manifest.write(&directory).unwrap();
            SnapshotManifest::read(&directory).unwrap_err()
        };
        assert!(matches!(damage(|m| m.format = 2), ManifestError::Format { found: 2, .. }));
        assert!(matches!(damage(|m| m.memory.clear()), ManifestError::Nonsense { .. }));
        assert!(matches!(damage(|m| m.memory[0].size = 1), ManifestError::Nonsense { .. }));
        assert!(matches!(damage(|m| m.disk[0] = "../../x".into()), ManifestError::Nonsense { .. }));
        let workspace = |m: &mut SnapshotManifest| {
            let slots = vec!["../../x".to_owned()];
            m.workspace = Some(WorkspaceRecord { slots, ..WorkspaceRecord::empty(1) });
        };
        assert!(matches!(damage(workspace), ManifestError::Nonsense { .. }));
        let seal = |m: &mut SnapshotManifest| {
            m.seals = [("../x".to_owned(), Seal { modified_ns: 0, blake3: String::new() })].into_iter().collect()
        };
        assert!(matches!(damage(seal), ManifestError::Nonsense { .. }));
        directory.replace(MANIFEST, b"{").unwrap();
        assert!(matches!(SnapshotManifest::read(&directory), Err(ManifestError::Damaged { .. })));
    }

    #[test]
    fn a_snapshot_mounts_no_volume_that_can_be_written() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let read = |mount: MountSpec| {
            let mounts = Mounts::new(vec![mount]).unwrap();
            SnapshotManifest { mounts, ..example("abcdefgh") }.write(&directory).unwrap();
            SnapshotManifest::read(&directory)
        };
        let with_version = |read_only| {
            let mut mount = volume("v", "/v", read_only);
            if let MountSource::Volume { version, .. } = &mut mount.source {
                *version = Some(FileVersion { device: 0, inode: 0, size: 0, modified_ns: 0 });
            }
            mount
        };
        let of_server = MountSource::SharedVolume { path: "/etc".into(), bytes: 1, names: 1 };
        let of_server = MountSpec { source: of_server, ..volume("v", "/v", true) };
        let hostile = [volume("v", "/v", true), with_version(false), of_server];
        for mount in hostile {
            assert!(matches!(read(mount.clone()), Err(ManifestError::Nonsense { .. })), "{mount:?}");
        }
        read(with_version(true)).unwrap();
    }
}
