//! Which limits the sandbox's programs met, for hosts to log: as the kernel tells, looked at when a program failed.
//!
//! | what | where from |
//! |---|---|
//! | processes refused | `pids.events` of the control group they are in |
//! | killed for memory | the kernel's log: with neither the memory controller nor event counters, nothing else says so |
//! | disk full | statfs(2) of the root |
//!
//! Nothing is looked at while programs run well. A turn reads a bounded number of records, whatever is in the log; what a
//! program writes there itself is recognised by its facility, which the kernel sets (kernel/printk/printk.c,
//! `devkmsg_write`).

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek, statvfs};
use rustix::io::{Errno, read};
use sandboxvm_protocol::agent::limits::LimitsHit;
use std::os::fd::OwnedFd;

const PIDS_EVENTS: &str = "/sys/fs/cgroup/sandbox/pids.events";
const KERNEL_LOG: &str = "/dev/kmsg";
/// How the kernel begins what it says of a process that it kills because memory ran out (mm/oom_kill.c).
const KILLED: &[u8] = b"Out of memory: Killed process ";
/// Records of the kernel's log in one look; it holds some hundreds.
const MOST_RECORDS: usize = 512;
/// The kernel refuses to give a longer one.
const RECORD: usize = 8192;
/// Priorities below this are of facility 0, the kernel's own (syslog(2)).
const KERNEL_FACILITY: u32 = 8;
/// With less than this no file gets any.
const NO_ROOM: u64 = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct LimitCounts {
    /// At the record that is next; `None` without such a log.
    log: Option<OwnedFd>,
    /// As `pids.events` counted when a host was last told.
    refused: u64,
    disk_was_full: bool,
}

impl LimitCounts {
    /// Counts from here on.
    pub(crate) fn begin() -> Self {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let log = open(KERNEL_LOG, flags, Mode::empty()).ok().filter(|log| seek(log, SeekFrom::End(0)).is_ok());
        Self { log, refused: 0, disk_was_full: false }
    }

    /// Returns the limits that were met since the last call, if any.
    pub(crate) fn since_last(&mut self) -> Option<LimitsHit> {
        // Missing where the guest's root has removed the group; a new group starts to count at zero.
        let refused = std::fs::read(PIDS_EVENTS).ok().and_then(|text| refused_of(&text)).unwrap_or(0);
        // Not all that is free: ext4 keeps some of that for itself.
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
                // Records were overwritten before they were read: the next read returns the oldest that is left.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => break,
            }
        }
        killed
    }
}

/// The number in the line `max N`.
fn refused_of(events: &[u8]) -> Option<u64> {
    std::str::from_utf8(events).ok()?.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok())
}

/// `priority,sequence,time,flags;text`, by the kernel itself.
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
    fn the_kernel_is_told_from_who_writes_into_its_log() {
        let text = "Out of memory: Killed process 211 (python3) total-vm:1kB\n";
        assert!(is_kill(format!("3,412,81000123,-;{text}").as_bytes()));
        // As a program's own words come out, whatever facility it states.
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
