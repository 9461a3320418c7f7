//! `config.json`: what a sandbox was made as. Written once, before the sandbox can be seen, and never changed.

use crate::{
    directory::{CONFIG, DirectoryError, SandboxDirectory},
    limits::Limits,
};
use sandboxvm_images::identity::FileIdentity;
use sandboxvm_protocol::{
    identity::{SandboxId, SandboxName},
    machine::{MemorySize, VcpuCount},
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::SystemTime};

/// A record is some hundred bytes plus the environment given at create.
const MAX_RECORD: u64 = 4 << 20;
const FORMAT: u32 = 1;

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Reading or writing failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Not valid.
    #[error("{} is damaged: {source}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Written by a newer sandboxvm.
    #[error("{} has unsupported format {found}: this build reads {FORMAT}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// A file a sandbox is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Where it was.
    pub path: PathBuf,
    /// Which version of it.
    pub identity: FileIdentity,
}

/// What a sandbox was made as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Version of this file's format.
    pub format: u32,
    /// The sandbox.
    pub id: SandboxId,
    /// Its name, when it has one.
    pub name: Option<SandboxName>,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub created_at: SystemTime,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory_bytes: MemorySize,
    /// Size of the writable disk in bytes.
    pub disk_bytes: u64,
    /// Guest kernel.
    pub kernel: FileRecord,
    /// Base image.
    pub image: FileRecord,
    /// Agent disk.
    pub agent: FileRecord,
    /// `KEY=VALUE`, given to every process started in the sandbox.
    pub env: Vec<String>,
    /// It belongs to one `run` and goes with it.
    pub ephemeral: bool,
    /// What it may have.
    #[serde(default)]
    pub limits: Limits,
}

impl SandboxRecord {
    /// The format this build writes.
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
            return Err(RecordError::Format { path: path(), found: format });
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
        let identity = FileIdentity { device: 1, inode: 2, size: 3, modified_ns: 4 };
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
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let record = example("abcdefgh");
        record.write(&directory).unwrap();
        assert_eq!(SandboxRecord::read(&directory).unwrap(), record);
        let text = std::fs::read_to_string(directory.path().join(CONFIG)).unwrap();
        assert!(text.contains("\"created_at\": \"2023-11-14T22:13:20.123Z\""), "{text}");
    }

    #[test]
    fn damage_and_other_formats_are_told_apart() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        directory.write_new(CONFIG, b"{\"format\": 9}").unwrap();
        assert!(matches!(SandboxRecord::read(&directory), Err(RecordError::Format { found: 9, .. })));
        std::fs::write(directory.path().join(CONFIG), "{").unwrap();
        assert!(matches!(SandboxRecord::read(&directory), Err(RecordError::Damaged { .. })));
    }
}
