//! `config.json`: the configuration with which a sandbox was created. Written once, before others
//! can see the sandbox, and may never be changed.

use crate::{
    home::directory::{CONFIG, DirectoryError, NETWORK, NETWORK_SECRETS, SandboxDirectory},
    image_defaults::ImageDefaults,
    limits::kept::Limits,
    mounts::Mounts,
    workspace::WorkspaceRecord,
};
use sandboxvm_images::file_version::FileVersion;
use sandboxvm_protocol::{
    ids::{SandboxId, SandboxName},
    machine::{MemorySize, VcpuCount},
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::SystemTime};

/// Maximum size of the record in bytes: some hundred bytes, and the environment set at create.
const MAX_RECORD: u64 = 4 << 20;
const FORMAT: u32 = 1;
/// The records of the network.
const OF_NETWORK: [&str; 2] = [NETWORK, NETWORK_SECRETS];

/// Why a record of a sandbox cannot be read: its configuration, or one of its network.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Reading or writing failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The record is not valid.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged {
        /// Path of the record.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// A newer sandboxvm wrote the record.
    #[error("{} has unsupported format {found}: this build reads {reads}", .path.display())]
    Format {
        /// Path of the record.
        path: PathBuf,
        /// The format of the record.
        found: u32,
        /// The format that this build reads.
        reads: u32,
    },
}

impl RecordError {
    /// Returns true if the record is one of the network, which setting the network replaces.
    #[must_use]
    pub fn is_about_network(&self) -> bool {
        match self {
            Self::Damaged { path, .. } | Self::Format { path, .. } => {
                OF_NETWORK.iter().any(|name| path.ends_with(name))
            }
            Self::Directory(_) => false,
        }
    }
}

/// A file that a sandbox was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path that the file had.
    pub path: PathBuf,
    /// The version of the file.
    pub identity: FileVersion,
}

/// The configuration of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Version of the format of this file.
    pub format: u32,
    /// ID of the sandbox.
    pub id: SandboxId,
    /// Name of the sandbox, if it has one.
    pub name: Option<SandboxName>,
    /// The time at which it was created.
    #[serde(with = "rfc3339")]
    pub created_at: SystemTime,
    /// Number of vCPUs.
    pub vcpus: VcpuCount,
    /// Size of the guest memory.
    pub memory_bytes: MemorySize,
    /// Size of the writable disk in bytes.
    pub disk_bytes: u64,
    /// The guest kernel.
    pub kernel: FileRecord,
    /// The base image.
    pub image: FileRecord,
    /// The agent disk.
    pub agent: FileRecord,
    /// `KEY=VALUE` entries, set for every process that is started in the sandbox.
    pub env: Vec<String>,
    /// True if it belongs to one `run` and is removed with it.
    pub ephemeral: bool,
    /// The limits of the sandbox.
    #[serde(default)]
    pub limits: Limits,
    /// True if the machine has a network card.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub network_card: bool,
    /// What the image says about processes. `None` for an image that is only a file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_defaults: Option<ImageDefaults>,
    /// The workspace of the sandbox, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceRecord>,
    /// What is mounted beside the root.
    #[serde(default, skip_serializing_if = "Mounts::is_empty")]
    pub mounts: Mounts,
    /// Processes cannot write the root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only_root: bool,
}

impl SandboxRecord {
    /// The format that this build writes.
    pub(crate) const FORMAT: u32 = FORMAT;

    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), RecordError> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|source| RecordError::Damaged { path: directory.path().join(CONFIG), source })?;
        json.push(b'\n');
        Ok(directory.write_new(CONFIG, &json)?)
    }

    pub(crate) fn read(directory: &SandboxDirectory) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = || directory.path().join(CONFIG);
        let json = directory.read(CONFIG, MAX_RECORD)?;
        let damaged = |source| RecordError::Damaged { path: path(), source };
        let Format { format } = serde_json::from_slice(&json).map_err(damaged)?;
        if format != FORMAT {
            return Err(RecordError::Format { path: path(), found: format, reads: FORMAT });
        }
        serde_json::from_slice(&json).map_err(damaged)
    }
}

pub(crate) mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::SystemTime;

    pub(crate) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    pub(crate) fn example(id: &str) -> SandboxRecord {
        let identity = FileVersion { device: 1, inode: 2, size: 3, modified_ns: 4 };
        let file = |path: &str| FileRecord { path: path.into(), identity: identity.clone() };
        SandboxRecord {
            format: FORMAT,
            id: SandboxId::try_from(id.to_owned()).unwrap(),
            name: Some(SandboxName::try_from("demo".to_owned()).unwrap()),
            created_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            vcpus: VcpuCount::ONE,
            memory_bytes: MemorySize::try_from(256 << 20).unwrap(),
            disk_bytes: 2 << 30,
            kernel: file("/b/vmlinux"),
            image: file("/b/base.erofs"),
            agent: file("/b/agent.erofs"),
            env: vec!["A=1".into()],
            ephemeral: false,
            limits: Limits::default(),
            network_card: false,
            image_defaults: None,
            workspace: None,
            mounts: Mounts::default(),
            read_only_root: false,
        }
    }

    #[test]
    fn record_round_trips() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let record = example("abcdefgh");
        record.write(&directory).unwrap();
        assert_eq!(SandboxRecord::read(&directory).unwrap(), record);
        let text = std::fs::read_to_string(directory.path().join(CONFIG)).unwrap();
        assert!(text.contains("\"created_at\": \"2023-11-14T22:13:20.123Z\""), "{text}");
    }

    #[test]
    fn damage_and_other_formats_are_distinguished() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        directory.write_new(CONFIG, b"{\"format\": 9}").unwrap();
        assert!(matches!(SandboxRecord::read(&directory), Err(RecordError::Format { found: 9, reads: FORMAT, .. })));
        std::fs::write(directory.path().join(CONFIG), "{").unwrap();
        assert!(matches!(SandboxRecord::read(&directory), Err(RecordError::Damaged { .. })));
    }
}
