//! What the host can take: a refusal with numbers, before anything is made, instead of an out-of-memory kill later.

use sandboxvm_protocol::machine::{MIB, MemorySize};
use std::{fs, io};

/// Why a sandbox is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// More memory than there is.
    #[error("{} MiB of memory: this host has {host_mib} MiB in all; ask for less", .asked.mib())]
    MoreThanTheHost {
        /// Asked for.
        asked: MemorySize,
        /// The host's memory in MiB.
        host_mib: u64,
    },
    /// The host's memory is not known.
    #[error("cannot read the host's memory from /proc/meminfo: {0}")]
    Unknown(io::Error),
}

/// Admits a guest of `asked` memory, or not.
///
/// # Errors
/// Every [`AdmissionError`].
pub(crate) fn check_memory(asked: MemorySize) -> Result<(), AdmissionError> {
    let host_mib = host_memory().map_err(AdmissionError::Unknown)?.total / MIB;
    if asked.mib() <= host_mib { Ok(()) } else { Err(AdmissionError::MoreThanTheHost { asked, host_mib }) }
}

/// The host's memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: u64,
    /// What new processes can have without swapping.
    pub available: u64,
}

/// Reads /proc/meminfo.
///
/// # Errors
/// When it cannot be read or lacks the two lines.
pub fn host_memory() -> io::Result<HostMemory> {
    parse(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemTotal or MemAvailable in it"))
}

fn parse(meminfo: &str) -> Option<HostMemory> {
    let bytes_of = |key: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(HostMemory { total: bytes_of("MemTotal:")?, available: bytes_of("MemAvailable:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24689124 kB\nMemFree:  1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(parse(text), Some(HostMemory { total: 24_689_124 * 1024, available: 23_000_000 * 1024 }));
        assert_eq!(parse("MemTotal: x kB\n"), None);
    }

    #[test]
    fn what_fits_is_admitted_and_more_than_the_host_is_not() {
        check_memory(MemorySize::try_from(MemorySize::MIN).unwrap()).unwrap();
        if host_memory().unwrap().total < MemorySize::MAX {
            let message = check_memory(MemorySize::try_from(MemorySize::MAX).unwrap()).unwrap_err().to_string();
            assert!(message.contains("65536 MiB of memory: this host has"), "{message}");
        }
    }
}
