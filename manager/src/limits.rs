//! What a sandbox may have of its own machine and of the host's processor, and what of that is not in force.
//!
//! Limits are the sandbox's, not those of the snapshot it goes on from: whatever the machine had before, it is told
//! them with its identity. Where one cannot be kept, because the host or an older agent lacks the means, the sandbox
//! runs all the same, unless it was asked for in so many words, and says so for as long as it lives.

use crate::directory::{DirectoryError, SandboxDirectory};
use sandboxvm_protocol::{
    agent::limits::{FileCount, ProcessCount, ProcessLimits},
    machine::{DiskLimits, DiskOperations, DiskRate, MemorySize, OutputRate},
    vmm::ControlRequest,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A reason is a sentence or two.
const MAX_REASON: u64 = 16 * 1024;

/// Not a share of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid processor share {0}%: must be between 1% and {max}%, where 100% is one processor", max = CpuShare::MAX)]
pub struct CpuShareError(u32);

/// How much processor time a sandbox may use, in hundredths of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct CpuShare(u32);

impl CpuShare {
    /// Most: far more than a sandbox has vCPUs.
    pub const MAX: u32 = 6400;

    /// In hundredths of a processor.
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

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WantedLimits {
    /// Processes and threads; [`ProcessCount::default_for`] its memory when not stated.
    pub processes: Option<ProcessCount>,
    /// Open files of each process.
    pub files: Option<FileCount>,
    /// Processor time.
    pub cpu_share: Option<CpuShare>,
    /// What it sends.
    pub output_rate: Option<OutputRate>,
    /// How fast its disks are served.
    pub disk: DiskLimits,
}

/// What a sandbox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processes and threads.
    pub processes: ProcessCount,
    /// Open files of each process, where they are not the guest's own 8192.
    pub files: Option<FileCount>,
    /// Processor time in hundredths of a processor, where it is limited.
    pub cpu_share: Option<CpuShare>,
    /// Bytes a second that it may send: its processes' output, files and traffic to its ports together.
    #[serde(default)]
    pub output_rate: Option<OutputRate>,
    /// Maximum rate at which its disks are served together, in bytes per second.
    #[serde(default)]
    pub disk_rate: Option<DiskRate>,
    /// Maximum number of operations per second that its disks serve together.
    #[serde(default)]
    pub disk_operations: Option<DiskOperations>,
    /// Processes or files were asked for: then nothing runs without them.
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

    /// What the VMM is asked to keep, before the machine runs.
    pub(crate) fn of_the_vmm(&self) -> Vec<ControlRequest> {
        let disk = DiskLimits { rate: self.disk_rate, operations: self.disk_operations };
        let disk = (!disk.is_unlimited()).then_some(ControlRequest::LimitDisk(disk));
        self.output_rate.map(ControlRequest::LimitOutput).into_iter().chain(disk).collect()
    }

    /// What the agent is told.
    pub(crate) fn of_processes(&self) -> ProcessLimits {
        ProcessLimits { processes: self.processes, files: self.files }
    }
}

/// Of a sandbox that was made before there were limits.
impl Default for Limits {
    fn default() -> Self {
        let least = MemorySize::try_from(MemorySize::MIN).expect("the least is a size");
        Self::new(WantedLimits::default(), least)
    }
}

/// Which limit is not in force.
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

    /// Has the sandbox say so from here on.
    pub(crate) fn because(self, directory: &SandboxDirectory, reason: &str) -> Result<(), DirectoryError> {
        directory.replace(self.file(), reason.as_bytes())
    }

    /// It is in force.
    pub(crate) fn is_kept(self, directory: &SandboxDirectory) -> Result<(), DirectoryError> {
        directory.unlink(self.file())
    }
}

/// Which limits of a sandbox are not in force, and why; one sentence each.
pub(crate) fn unkept(directory: &SandboxDirectory) -> Vec<String> {
    let reason = |unkept: Unkept| directory.read(unkept.file(), MAX_REASON).ok();
    Unkept::ALL.into_iter().filter_map(reason).map(|text| String::from_utf8_lossy(&text).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_must_hold_and_the_rest_goes_by_memory() {
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
    fn what_is_not_kept_is_said_until_it_is() {
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
