//! Flags that say what a sandbox may have, and saying which of that is not kept.

use crate::values::{disk_operations, disk_rate, files, output_rate, pids, share};
use clap::Args;
use sandboxvm_manager::{CpuShare, Sandbox, WantedLimits};
use sandboxvm_protocol::{
    agent::limits::{FileCount, ProcessCount},
    machine::{DiskLimits, DiskOperations, DiskRate, OutputRate},
};

/// What a new sandbox may have.
#[derive(Debug, Args)]
pub(crate) struct LimitOptions {
    /// Most processes and threads at a time: 1 to 30000; four for each MiB of memory unless stated, from 256 to 4096.
    /// A few more may be started from outside, to look into a sandbox that has as many as it may
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = pids)]
    pids: Option<ProcessCount>,
    /// Most open files of each process: 8 to 1048576; 8192 unless stated, which a process may raise
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = files)]
    nofile: Option<FileCount>,
    /// Most processor time, in hundredths of one processor of the host: 50%, or 150% for two vCPUs
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true, value_parser = share)]
    cpu_share: Option<CpuShare>,
    /// Most bytes a second that it sends, 256K at least: output of its processes, files copied out of it and traffic of its
    /// ports together. What is more waits in the sandbox
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = output_rate)]
    output_rate: Option<OutputRate>,
    /// Maximum rate at which the sandbox's disks are served together, reads and writes: 256K or more per second
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = disk_rate)]
    disk_rate: Option<DiskRate>,
    /// Maximum number of disk operations per second, 10 or more: reads, writes and flushes together
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = disk_operations)]
    disk_ops: Option<DiskOperations>,
}

impl LimitOptions {
    pub(crate) fn wanted(&self) -> WantedLimits {
        WantedLimits {
            processes: self.pids,
            files: self.nofile,
            cpu_share: self.cpu_share,
            output_rate: self.output_rate,
            disk: DiskLimits { rate: self.disk_rate, operations: self.disk_ops },
        }
    }
}

/// Says on stderr which limits of a sandbox are not in force, but for those said `before`. The value is all of them.
pub(crate) fn warn(sandbox: &Sandbox, before: &[String]) -> Vec<String> {
    let unkept = sandbox.unkept_limits();
    for reason in unkept.iter().filter(|reason| !before.contains(reason)) {
        eprintln!("sandboxvm: warning: sandbox {}: {reason}", sandbox.id());
    }
    unkept
}
