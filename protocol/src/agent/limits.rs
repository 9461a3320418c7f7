//! What the processes of a sandbox may have together, and each of them.
//!
//! The guest's kernel keeps these, so they protect a sandbox from its own programs, and its agent from a fork bomb; root
//! in the guest can undo them. What protects the host from a guest is the machine's own size and its share of the
//! processor, which no guest has a say in.

use crate::machine::MemorySize;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a number is not a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Processes.
    #[error("invalid number of processes {0}: must be between {min} and {max}", min = ProcessCount::MIN, max = ProcessCount::MAX)]
    Processes(u32),
    /// Open files.
    #[error("invalid number of open files {0}: must be between {min} and {max}", min = FileCount::MIN, max = FileCount::MAX)]
    Files(u32),
}

/// Most processes and threads that a sandbox may have at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ProcessCount(u32);

impl ProcessCount {
    /// Fewest: the one that is asked for.
    pub const MIN: u32 = 1;
    /// Most: below `pid_max` of a guest, less what its kernel and the agent need.
    pub const MAX: u32 = 30_000;
    /// How many more than are allowed there may be, so that commands of the host can still be run when a sandbox has as
    /// many processes as it may.
    pub const RESERVE: u32 = 32;

    /// Where nobody asked for another: four for each MiB of memory, from 256 to 4096. A guest's kernel by itself allows
    /// some eight for each MiB, beyond which its agent could not start anything either.
    #[must_use]
    pub fn default_for(memory: MemorySize) -> Self {
        Self(u32::try_from(memory.mib()).unwrap_or(u32::MAX).saturating_mul(4).clamp(256, 4096))
    }

    /// The number.
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

/// Most files that one process may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct FileCount(u32);

impl FileCount {
    /// Fewest: standard streams, and what a dynamic loader opens.
    pub const MIN: u32 = 8;
    /// Most: `fs.nr_open` of a guest.
    pub const MAX: u32 = 1 << 20;

    /// The number.
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

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Processes and threads together, but for the agent's own and [`ProcessCount::RESERVE`].
    pub processes: ProcessCount,
    /// Open files of each process started from here on, as soft and hard limit; without it what the agent gives.
    pub files: Option<FileCount>,
}

/// Which limits the sandbox's programs met since a host was last told. A guest's word: its root can withhold it or make
/// it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsHit {
    /// How often a process could not be started because there were [`ProcessLimits::processes`].
    pub processes_refused: u64,
    /// How many processes the kernel killed because memory ran out.
    pub killed_for_memory: u64,
    /// The disk has no room left, and had some when this was last told.
    pub disk_is_full: bool,
}
