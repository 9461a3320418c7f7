//! What each sandbox took of the machine, every few seconds of the last hour.

use super::{Registry, ends, entry::Entry, error::RegistryError};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

/// Between two of them.
const EVERY: Duration = Duration::from_secs(10);
/// An hour's.
pub(super) const KEPT: usize = 360;

/// What one took.
#[derive(Debug, Clone, Copy)]
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
}

impl Registry {
    /// Takes samples of all sandboxes, for ever.
    pub(crate) async fn keep_samples(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            for entry in self.entries() {
                self.notice_removal(&entry);
                if let Err(error) = self.sample(&entry) {
                    tracing::debug!(sandbox = %entry.id, %error, "cannot take a sample");
                }
            }
        }
    }

    /// Forgets a sandbox that another process removed, unless a call is about to find that out.
    fn notice_removal(&self, entry: &Entry) {
        let Ok(_change) = entry.change.try_lock() else { return };
        if matches!(self.sandbox(entry), Err(RegistryError::Unknown(_)))
            && !entry.is_gone()
            && let Err(error) = self.lose(entry)
        {
            tracing::warn!(sandbox = %entry.id, %error, "cannot remove the remaining files of a removed sandbox");
        }
    }

    /// Takes one of a running sandbox.
    pub(crate) fn sample(&self, entry: &Entry) -> Result<(), RegistryError> {
        if entry.record().is_paused() {
            return Ok(());
        }
        let sandbox = self.sandbox(entry)?;
        let Some(usage) = sandbox.usage()? else {
            ends::note(&self.ends, entry, &sandbox.state()?);
            return Ok(());
        };
        let at = SystemTime::now();
        let cpus = u32::from(sandbox.record().vcpus);
        let before = entry.samples().last().copied();
        let cpu_percent = match before {
            Some(before) if usage.cpu >= before.cpu => {
                let passed = at.duration_since(before.at).unwrap_or_default().as_secs_f64() * f64::from(cpus);
                if passed > 0.0 { (usage.cpu - before.cpu).as_secs_f64() / passed * 100.0 } else { 0.0 }
            }
            _ => 0.0,
        };
        entry.add_sample(Sample {
            at,
            cpus,
            cpu_percent: (cpu_percent * 100.0).round() / 100.0,
            cpu: usage.cpu,
            memory: usage.private_bytes,
            memory_total: sandbox.record().memory_bytes.bytes(),
            disk: allocated(&sandbox.path()),
            disk_total: sandbox.record().disk_bytes,
        });
        Ok(())
    }
}

/// Bytes that the files of a directory take.
fn allocated(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).sum()
}
