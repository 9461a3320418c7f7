//! Limits of a sandbox's processes, together and of each.
//!
//! The guest's kernel enforces these limits. So they protect a sandbox from its own programs, and
//! its agent from a fork bomb, and root of the guest can remove them. The size of the machine and
//! its share of the processor protect the host, and no guest can change those.

use crate::machine::MemorySize;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a number is not a valid limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The number of processes is out of range.
    #[error("invalid number of processes {0}: must be between {min} and {max}", min = ProcessCount::MIN, max = ProcessCount::MAX)]
    Processes(u32),
    /// The number of open files is out of range.
    #[error("invalid number of open files {0}: must be between {min} and {max}", min = FileCount::MIN, max = FileCount::MAX)]
    Files(u32),
}

/// Maximum number of processes and threads of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ProcessCount(u32);

impl ProcessCount {
    /// The minimum: the process of the request itself.
    pub const MIN: u32 = 1;
    /// The maximum, below `pid_max` of a guest minus what its kernel and the agent need.
    pub const MAX: u32 = 30_000;
    /// Number of additional processes, so that the host can still run commands in a sandbox at its
    /// limit.
    pub const RESERVE: u32 = 32;

    /// Returns the default: four for each MiB of memory, clamped to 256-4096. A guest's kernel by itself allows about eight
    /// for each MiB, beyond which its agent could not start anything either.
    #[must_use]
    pub fn default_for(memory: MemorySize) -> Self {
        Self(u32::try_from(memory.mib()).unwrap_or(u32::MAX).saturating_mul(4).clamp(256, 4096))
    }

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for ProcessCount {
    type Error = LimitError;

    fn try_from(count: u32) -> Result<Self, LimitError> {
        if (Self::MIN..=Self::MAX).contains(&count) { Ok(Self(count)) } else { Err(LimitError::Processes(count)) }
    }
}

impl From<ProcessCount> for u32 {
    fn from(count: ProcessCount) -> Self {
        count.0
    }
}

impl fmt::Display for ProcessCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Maximum number of open files of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct FileCount(u32);

impl FileCount {
    /// The minimum: standard streams, and the files that a dynamic loader opens.
    pub const MIN: u32 = 8;
    /// The maximum: `fs.nr_open` of a guest.
    pub const MAX: u32 = 1 << 20;

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for FileCount {
    type Error = LimitError;

    fn try_from(count: u32) -> Result<Self, LimitError> {
        if (Self::MIN..=Self::MAX).contains(&count) { Ok(Self(count)) } else { Err(LimitError::Files(count)) }
    }
}

impl From<FileCount> for u32 {
    fn from(count: FileCount) -> Self {
        count.0
    }
}

impl fmt::Display for FileCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The limits of a sandbox's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Processes and threads together, except those of the agent and [`ProcessCount::RESERVE`].
    pub processes: ProcessCount,
    /// Open files of each new process, as soft and hard limit. If absent, the agent's default.
    pub files: Option<FileCount>,
}

/// Which limits the sandbox's programs have reached since the last report. The report comes from
/// the guest: its root can suppress or invent it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsHit {
    /// How often a process was refused because of [`ProcessLimits::processes`].
    pub processes_refused: u64,
    /// Number of processes that the kernel killed because memory ran out.
    pub killed_for_memory: u64,
    /// Whether the disk is full, and was not at the last report.
    pub disk_is_full: bool,
}
