//! Options for the limits of a sandbox, and warnings about limits that are not enforced.

use crate::{
    options::values::{disk_operations, disk_rate, files, output_rate, pids, share},
    stdio,
};
use clap::Args;
use sandboxvm_manager::{
    CpuShare, DiskLimits, DiskOperations, DiskRate, FileCount, OutputRate, ProcessCount, Sandbox, WantedLimits,
};

/// The limits of a new sandbox.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Maximum number of processes and threads (1-30000). `exec` may use a small reserve when the sandbox is at its limit
    /// [default: 4 per MiB of memory, clamped to 256-4096]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = pids)]
    pids: Option<ProcessCount>,
    /// Maximum number of open files per process (8-1048576) [default: 8192, which a process may raise]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = files)]
    nofile: Option<FileCount>,
    /// Maximum processor time, in percent of one processor of the host (1%-6400%) [default: no limit]
    #[arg(long, value_name = "PERCENT", allow_hyphen_values = true, value_parser = share)]
    cpu_share: Option<CpuShare>,
    /// Maximum rate in bytes per second at which the sandbox sends process output, file copies and port traffic together
    /// (256K-64G). Excess data stays queued in the guest [default: no limit]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = output_rate)]
    output_rate: Option<OutputRate>,
    /// Maximum rate in bytes per second of reads and writes on the disks of the sandbox together (256K-64G)
    /// [default: no limit]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = disk_rate)]
    disk_rate: Option<DiskRate>,
    /// Maximum number of reads, writes and flushes per second on the disks of the sandbox together (10-10000000)
    /// [default: no limit]
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

/// Warns of limits of a sandbox that are not enforced, except those in `before`. Returns all of them.
pub(crate) fn warn(sandbox: &Sandbox, before: &[String]) -> Vec<String> {
    let unkept = sandbox.unkept_limits();
    for reason in unkept.iter().filter(|reason| !before.contains(reason)) {
        stdio::notice(format_args!("warning: sandbox {}: {reason}", sandbox.id()));
    }
    unkept
}
