//! The limits of a sandbox within its machine and on the host's processor, and which of them are
//! not in force.
//!
//! Limits belong to the sandbox, not to the snapshot it was restored from: whatever limits the
//! machine had before, it receives those of the sandbox with its identity. If a limit cannot be
//! enforced, because the host or an older agent lacks the means, the sandbox runs anyway and
//! reports that as long as it lives, unless the user set this limit explicitly.

use crate::home::directory::{DirectoryError, SandboxDirectory};
use sandboxvm_protocol::{
    agent::limits::{FileCount, ProcessCount, ProcessLimits},
    machine::{DiskLimits, DiskOperations, DiskRate, MemorySize, OutputRate},
    vmm::ControlRequest,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Maximum size of a reason in bytes. It is a sentence or two.
const MAX_REASON: u64 = 16 * 1024;

/// A number that is not a valid processor share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid processor share {0}%: must be between 1% and {max}%, where 100% is one processor", max = CpuShare::MAX)]
pub struct CpuShareError(u32);

/// Maximum processor time of a sandbox, in percent of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct CpuShare(u32);

impl CpuShare {
    /// Maximum share in percent: far more than a sandbox has vCPUs.
    pub const MAX: u32 = 6400;

    /// Returns the share in percent of one processor.
    #[must_use]
    pub fn percent(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for CpuShare {
    type Error = CpuShareError;

    fn try_from(percent: u32) -> Result<Self, CpuShareError> {
        if (1..=Self::MAX).contains(&percent) { Ok(Self(percent)) } else { Err(CpuShareError(percent)) }
    }
}

impl From<CpuShare> for u32 {
    fn from(share: CpuShare) -> Self {
        share.0
    }
}

impl fmt::Display for CpuShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// The limits that a request asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WantedLimits {
    /// Maximum number of processes and threads. `None` for [`ProcessCount::default_for`] the
    /// memory.
    pub processes: Option<ProcessCount>,
    /// Maximum number of open files of each process.
    pub files: Option<FileCount>,
    /// Maximum processor time.
    pub cpu_share: Option<CpuShare>,
    /// Maximum rate of data that the sandbox sends.
    pub output_rate: Option<OutputRate>,
    /// Maximum rates of the disks.
    pub disk: DiskLimits,
}

/// The limits of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Maximum number of processes and threads.
    pub processes: ProcessCount,
    /// Maximum number of open files of each process. `None` for the guest's default of 8192.
    pub files: Option<FileCount>,
    /// Maximum processor time. `None` for no limit.
    pub cpu_share: Option<CpuShare>,
    /// Maximum rate in bytes per second at which the sandbox sends: output of processes, files and
    /// traffic to its ports together.
    #[serde(default)]
    pub output_rate: Option<OutputRate>,
    /// Maximum rate at which its disks are served together, in bytes per second.
    #[serde(default)]
    pub disk_rate: Option<DiskRate>,
    /// Maximum number of operations per second that its disks serve together.
    #[serde(default)]
    pub disk_operations: Option<DiskOperations>,
    /// True if processes or files were set explicitly: then no process runs without these limits.
    pub must_hold: bool,
}

impl Limits {
    pub(crate) fn new(wanted: WantedLimits, memory: MemorySize) -> Self {
        Self {
            processes: wanted.processes.unwrap_or_else(|| ProcessCount::default_for(memory)),
            files: wanted.files,
            cpu_share: wanted.cpu_share,
            output_rate: wanted.output_rate,
            disk_rate: wanted.disk.rate,
            disk_operations: wanted.disk.operations,
            must_hold: wanted.processes.is_some() || wanted.files.is_some(),
        }
    }

    /// Returns the requests for the limits that the VMM enforces, which it receives before the
    /// machine runs.
    pub(crate) fn of_the_vmm(&self) -> Vec<ControlRequest> {
        let disk = DiskLimits { rate: self.disk_rate, operations: self.disk_operations };
        let disk = (!disk.is_unlimited()).then_some(ControlRequest::LimitDisk(disk));
        self.output_rate.map(ControlRequest::LimitOutput).into_iter().chain(disk).collect()
    }

    /// Returns the limits that the agent receives.
    pub(crate) fn of_processes(&self) -> ProcessLimits {
        ProcessLimits { processes: self.processes, files: self.files }
    }
}

/// The limits of a sandbox that was created before there were limits.
impl Default for Limits {
    fn default() -> Self {
        let least = MemorySize::try_from(MemorySize::MIN).expect("the least is a size");
        Self::new(WantedLimits::default(), least)
    }
}

/// A limit that is not in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unkept {
    /// Processes and open files.
    Processes,
    /// Processor time.
    CpuShare,
}

impl Unkept {
    const ALL: [Self; 2] = [Self::Processes, Self::CpuShare];

    fn file(self) -> &'static str {
        match self {
            Self::Processes => "unkept.processes",
            Self::CpuShare => "unkept.cpu-share",
        }
    }

    /// Records that the limit is not in force, and why.
    pub(crate) fn because(self, directory: &SandboxDirectory, reason: &str) -> Result<(), DirectoryError> {
        directory.replace(self.file(), reason.as_bytes())
    }

    /// Records that the limit is in force.
    pub(crate) fn is_kept(self, directory: &SandboxDirectory) -> Result<(), DirectoryError> {
        directory.unlink(self.file())
    }
}

/// Returns why limits of a sandbox are not in force, one sentence for each.
pub(crate) fn unkept(directory: &SandboxDirectory) -> Vec<String> {
    let reason = |unkept: Unkept| directory.read(unkept.file(), MAX_REASON).ok();
    Unkept::ALL.into_iter().filter_map(reason).map(|text| String::from_utf8_lossy(&text).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_limits_must_hold_and_defaults_depend_on_memory() {
        let memory = MemorySize::try_from(256 << 20).unwrap();
        let plain = Limits::new(WantedLimits::default(), memory);
        assert_eq!((plain.processes.get(), plain.files, plain.must_hold), (1024, None, false));
        let files = FileCount::try_from(64).ok();
        let asked = Limits::new(WantedLimits { files, ..WantedLimits::default() }, memory);
        assert_eq!((asked.processes.get(), asked.files, asked.must_hold), (1024, files, true));
        let share = CpuShare::try_from(50).ok();
        assert!(!Limits::new(WantedLimits { cpu_share: share, ..WantedLimits::default() }, memory).must_hold);
        assert!(CpuShare::try_from(0).is_err() && CpuShare::try_from(6401).is_err());
    }

    #[test]
    fn unenforced_limits_are_reported_until_they_are_enforced() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        assert!(unkept(&directory).is_empty());
        Unkept::CpuShare.because(&directory, "no").unwrap();
        Unkept::Processes.because(&directory, "too old").unwrap();
        assert_eq!(unkept(&directory), ["too old", "no"]);
        Unkept::Processes.is_kept(&directory).unwrap();
        Unkept::Processes.is_kept(&directory).unwrap();
        assert_eq!(unkept(&directory), ["no"]);
    }
}
