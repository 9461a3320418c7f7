//! Finds which limits the sandbox's programs reached, so that hosts can log them. It asks the
//! kernel when a program has failed.
//!
//! | what | where from |
//! |---|---|
//! | processes refused | `pids.events` of the control group they are in |
//! | killed for memory | the kernel's log: with neither the memory controller nor event counters, nothing else says so |
//! | disk full | statfs(2) of the root |
//!
//! Nothing is read while programs succeed. One turn reads a bounded number of records, whatever the
//! log contains. What a program itself writes to the log is recognised by its facility, which the
//! kernel sets (kernel/printk/printk.c, `devkmsg_write`).

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek, statvfs};
use rustix::io::{Errno, read};
use sandboxvm_protocol::agent::limits::LimitsHit;
use std::os::fd::OwnedFd;

const PIDS_EVENTS: &str = "/sys/fs/cgroup/sandbox/pids.events";
const KERNEL_LOG: &str = "/dev/kmsg";
/// Start of the kernel's message about a process that it killed because memory ran out
/// (mm/oom_kill.c).
const KILLED: &[u8] = b"Out of memory: Killed process ";
/// Maximum number of records of the kernel's log in one turn. The log has some hundreds.
const MOST_RECORDS: usize = 512;
/// Maximum size of a record, which the kernel enforces.
const RECORD: usize = 8192;
/// Priorities below this are of facility 0, which is the kernel's (syslog(2)).
const KERNEL_FACILITY: u32 = 8;
/// Number of free bytes below which no file gets more.
const NO_ROOM: u64 = 64 * 1024;

/// The counts at the last report.
#[derive(Debug)]
pub(crate) struct LimitCounts {
    /// The kernel's log, at the next record. `None` if it cannot be read.
    log: Option<OwnedFd>,
    /// Count of `pids.events` at the last report.
    refused: u64,
    disk_was_full: bool,
}

impl LimitCounts {
    /// Starts to count.
    pub(crate) fn begin() -> Self {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let log = open(KERNEL_LOG, flags, Mode::empty()).ok().filter(|log| seek(log, SeekFrom::End(0)).is_ok());
        Self { log, refused: 0, disk_was_full: false }
    }

    /// Returns the limits that were met since the last call, if any.
    pub(crate) fn since_last(&mut self) -> Option<LimitsHit> {
        // Root of the guest may have removed the group. A new group starts at zero.
        let refused = std::fs::read(PIDS_EVENTS).ok().and_then(|text| refused_of(&text)).unwrap_or(0);
        // ext4 reserves some blocks, so not all free ones are available.
        let is_full = statvfs("/").is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < NO_ROOM);
        let hit = LimitsHit {
            processes_refused: refused.checked_sub(self.refused).unwrap_or(refused),
            killed_for_memory: self.killed(),
            disk_is_full: is_full && !self.disk_was_full,
        };
        (self.refused, self.disk_was_full) = (refused, is_full);
        (hit != LimitsHit::default()).then_some(hit)
    }

    fn killed(&self) -> u64 {
        let Some(log) = &self.log else { return 0 };
        let mut killed = 0;
        let mut record = [0; RECORD];
        for _ in 0..MOST_RECORDS {
            match read(log, &mut record) {
                Ok(length) => killed += u64::from(is_kill(record.get(..length).unwrap_or_default())),
                // Records were overwritten before they were read. The next read returns the oldest
                // one left.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => break,
            }
        }
        killed
    }
}

/// Returns the number in the line `max N`.
fn refused_of(events: &[u8]) -> Option<u64> {
    std::str::from_utf8(events).ok()?.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok())
}

/// Returns whether a record `priority,sequence,time,flags;text` is the kernel's message about a
/// kill.
fn is_kill(record: &[u8]) -> bool {
    let Some(end) = record.iter().position(|byte| *byte == b';') else { return false };
    let priority = record.split(|byte| *byte == b',').next().and_then(|text| std::str::from_utf8(text).ok());
    let is_kernels = priority.and_then(|text| text.parse::<u32>().ok()).is_some_and(|it| it < KERNEL_FACILITY);
    is_kernels && record[end + 1..].starts_with(KILLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_kernel_are_distinguished_from_those_of_programs() {
        let text = "Out of memory: Killed process 211 (python3) total-vm:1kB\n";
        assert!(is_kill(format!("3,412,81000123,-;{text}").as_bytes()));
        // The form in which the log has a program's own message, whatever facility it states.
        assert!(!is_kill(format!("11,412,81000123,-;{text}").as_bytes()));
        assert!(!is_kill(format!("3,412,81000123,-;x {text}").as_bytes()));
        for nonsense in [&b""[..], b";", b"3", text.as_bytes(), b"3,1,1,-;", b"\xff,1;Out"] {
            assert!(!is_kill(nonsense));
        }
    }

    #[test]
    fn refusals_are_counted() {
        assert_eq!(refused_of(b"max 17\n"), Some(17));
        assert_eq!(refused_of(b"low 1\nmax 3\n"), Some(3));
        assert!(refused_of(b"").is_none() && refused_of(b"max x\n").is_none() && refused_of(b"\xff").is_none());
    }
}
