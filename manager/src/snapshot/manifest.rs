//! `manifest.json`: what a snapshot is of, which files belong to it, and where it can go on.

use super::seal::Seals;
use crate::{
    directory::{DirectoryError, SandboxDirectory},
    host::HostIdentity,
    lineage::Contents,
    record::rfc3339,
};
use sandboxvm_protocol::{
    identity::{SandboxId, SandboxName},
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
    /// Not valid.
    #[error("the snapshot is damaged: {}: {source}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Another version.
    #[error("the snapshot has an unsupported format: {} has format {found}, and this build reads {FORMAT}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its parts contradict each other.
    #[error("the snapshot is damaged: {}: {what}", .path.display())]
    Nonsense {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

/// A memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// Its name in the snapshot's directory.
    pub name: String,
    /// Its length in bytes, that of guest memory; most of it is not stored.
    pub size: u64,
}

/// What a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// Version of this file's format.
    pub format: u32,
    /// Unique for ever, drawn like a sandbox's.
    pub id: SandboxId,
    /// What the user calls it; an image's ready snapshot has none.
    pub name: Option<SandboxName>,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub created_at: SystemTime,
    /// The sandbox it was made of.
    pub sandbox: SandboxId,
    /// The snapshot that this one's memory is a difference to.
    pub parent: Option<SandboxId>,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory_bytes: MemorySize,
    /// Size of the writable disk in bytes.
    pub disk_bytes: u64,
    /// `KEY=VALUE`, given to every process started in the sandbox.
    pub env: Vec<String>,
    /// The host it can go on on.
    pub host: HostIdentity,
    /// Kernel, image, agent and VMM by hash.
    pub contents: Contents,
    /// Memory files in the order the state file numbers them.
    pub memory: Vec<MemoryFile>,
    /// Disk layers above the template, oldest first.
    pub disk: Vec<String>,
    /// Of state, memory and disk layers; none in a snapshot made before there were any.
    #[serde(default)]
    pub seals: Seals,
}

impl SnapshotManifest {
    pub(super) fn write(&self, directory: &SandboxDirectory) -> Result<(), ManifestError> {
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
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{super::seal::Seal, *};
    use crate::lineage::tests::contents;
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
        }
    }

    #[test]
    fn a_manifest_comes_back_and_damage_is_told() {
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
        let seal = |m: &mut SnapshotManifest| {
            m.seals = [("../x".to_owned(), Seal { modified_ns: 0, blake3: String::new() })].into_iter().collect()
        };
        assert!(matches!(damage(seal), ManifestError::Nonsense { .. }));
        directory.replace(MANIFEST, b"{").unwrap();
        assert!(matches!(SnapshotManifest::read(&directory), Err(ManifestError::Damaged { .. })));
    }
}
