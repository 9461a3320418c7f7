//! Flags that say what a sandbox may have, and saying which of that is not kept.

use crate::options::size;
use clap::Args;
use sandboxvm_manager::{
    CpuShare, DiskLimits, DiskOperations, DiskRate, FileCount, OutputRate, ProcessCount, Sandbox, WantedLimits,
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

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "not a whole number".to_owned())
}

fn pids(text: &str) -> Result<ProcessCount, String> {
    ProcessCount::try_from(number(text)?).map_err(|error| error.to_string())
}

fn files(text: &str) -> Result<FileCount, String> {
    FileCount::try_from(number(text)?).map_err(|error| error.to_string())
}

fn share(text: &str) -> Result<CpuShare, String> {
    let percent = text.strip_suffix('%').unwrap_or(text);
    let percent = percent.parse::<u32>().map_err(|_| "not a percentage; write it as 50% or 150%".to_owned())?;
    CpuShare::try_from(percent).map_err(|error| error.to_string())
}

fn output_rate(text: &str) -> Result<OutputRate, String> {
    OutputRate::try_from(rate(text)?).map_err(|error| error.to_string())
}

fn disk_rate(text: &str) -> Result<DiskRate, String> {
    DiskRate::try_from(rate(text)?).map_err(|error| error.to_string())
}

fn rate(text: &str) -> Result<u64, String> {
    size(text.strip_suffix("/s").unwrap_or(text))
}

fn disk_operations(text: &str) -> Result<DiskOperations, String> {
    let count = text.parse::<u64>().map_err(|_| "not a whole number".to_owned())?;
    DiskOperations::try_from(count).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_said() {
        assert_eq!(pids("256").unwrap().get(), 256);
        assert!(pids("0").unwrap_err().contains("1 to 30000"));
        assert!(pids("-1").is_err() && pids("many").is_err());
        assert!(files("7").unwrap_err().contains("8 to 1048576"));
        assert_eq!(share("50%"), share("50"));
        assert_eq!(share("150%").unwrap().percent(), 150);
        assert!(share("0%").unwrap_err().contains("1% to 6400%"));
        assert!(share("half").unwrap_err().contains("50%"));
        assert_eq!(output_rate("1M/s"), output_rate("1MiB"));
        assert_eq!(output_rate("256k").unwrap().bytes_per_second(), 256 << 10);
        assert!(output_rate("255K").unwrap_err().contains("256 KiB to 64 GiB"));
        assert!(output_rate("fast").unwrap_err().contains("512M"));
        assert_eq!(disk_rate("1M/s").unwrap().bytes_per_second(), 1 << 20);
        assert!(disk_rate("1K").unwrap_err().contains("256 KiB to 64 GiB"));
        assert_eq!(disk_operations("500").unwrap().per_second(), 500);
        assert!(disk_operations("9").unwrap_err().contains("10 to 10000000"));
        assert!(disk_operations("-1").is_err() && disk_operations("1M").is_err());
    }
}
