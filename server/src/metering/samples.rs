//! Samples of what a sandbox takes of the host, every ten seconds of the last hour.

use super::traffic::Passed;
use sandboxvm_manager::{SandboxRecord, Usage};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// Time between two samples.
pub(crate) const EVERY: Duration = Duration::from_secs(10);
/// Number of samples in an hour.
const KEPT: usize = 360;

/// What a sandbox took at one moment.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) at: SystemTime,
    pub(crate) cpus: u32,
    /// Of all its vCPUs since the sample before, in percent.
    pub(crate) cpu_percent: f64,
    /// Processor time of its VMM so far.
    cpu: Duration,
    /// Bytes of the host's memory that it alone has.
    pub(crate) memory: u64,
    pub(crate) memory_total: u64,
    /// Bytes of its files on the host.
    pub(crate) disk: u64,
    pub(crate) disk_total: u64,
    /// What has passed its network so far.
    pub(crate) network: Passed,
}

/// The samples of one sandbox, at most an hour's.
#[derive(Debug, Default)]
pub(crate) struct Samples(Mutex<VecDeque<Sample>>);

impl Samples {
    /// All of them, oldest first.
    pub(crate) fn all(&self) -> Vec<Sample> {
        self.lock().iter().copied().collect()
    }

    /// The latest one.
    pub(crate) fn last(&self) -> Option<Sample> {
        self.lock().back().copied()
    }

    /// Adds what a sandbox takes now; the oldest sample makes room.
    pub(crate) fn take(&self, usage: &Usage, record: &SandboxRecord, directory: &Path, network: Passed) {
        let disk = allocated(directory);
        let sample = Sample { network, ..Sample::next(self.last(), SystemTime::now(), usage, record, disk) };
        let mut samples = self.lock();
        if samples.len() == KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    fn next(before: Option<Self>, at: SystemTime, usage: &Usage, record: &SandboxRecord, disk: u64) -> Self {
        let cpus = u32::from(record.vcpus);
        let cpu_percent = match before {
            Some(before) if usage.cpu >= before.cpu => {
                let passed = at.duration_since(before.at).unwrap_or_default().as_secs_f64() * f64::from(cpus);
                if passed > 0.0 { (usage.cpu - before.cpu).as_secs_f64() / passed * 100.0 } else { 0.0 }
            }
            _ => 0.0,
        };
        Self {
            at,
            cpus,
            cpu_percent: (cpu_percent * 100.0).round() / 100.0,
            cpu: usage.cpu,
            memory: usage.private_bytes,
            memory_total: record.memory_bytes.bytes(),
            disk,
            disk_total: record.disk_bytes,
            network: Passed::default(),
        }
    }
}

/// Bytes that the files of a directory take.
fn allocated(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).sum()
}
