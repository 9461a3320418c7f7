//! Admission of new sandboxes to the host: a rejection with numbers, before anything of a sandbox
//! is created, instead of an out-of-memory kill or a full disk later.
//!
//! There are four rules, and 0 disables a rule:
//!
//! * The home has at most a given number of sandboxes.
//! * The memory of all running sandboxes together stays below a multiple of the host's memory above
//!   its floor. With 1, every guest can fill its memory at the same time. With 4, the default, the
//!   guests of a host are expected to be idle for the most part, or to share memory with the
//!   snapshot they were restored from.
//! * The available memory of the host at this moment, above its floor, is enough for all the memory
//!   of a new sandbox.
//! * The free space in the home's file system, above its floor, is enough for its whole disk.
//!
//! So a single guest, whatever it does, leaves the host above both floors; many guests that were
//! idle and all start to write at the same time may not. Sandboxes of other homes count only with
//! what they use. The `ledger` records which sandboxes were admitted. This module may not create or
//! end a sandbox.

use crate::{
    home::rules::AdmissionRules,
    home::{directory::DirectoryError, layout::Home},
    limits::ledger::{Entry, Ledger},
};
use sandboxvm_protocol::{
    ids::SandboxId,
    machine::{MIB, MemorySize},
};
use std::{fs, io};

const MIB_U128: u128 = MIB as u128;

/// Why a sandbox is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The sandbox would have more memory than the host.
    #[error("cannot give a sandbox {} MiB of memory: this host has {host_mib} MiB in total", .asked.mib())]
    MoreThanTheHost {
        /// Requested memory.
        asked: MemorySize,
        /// The host's memory in MiB.
        host_mib: u64,
    },
    /// The home would have too many sandboxes.
    #[error("cannot create {count} more sandboxes: this home has {there} of at most {most}")]
    TooMany {
        /// Number of requested sandboxes.
        count: u32,
        /// Number of existing sandboxes.
        there: usize,
        /// Maximum number of sandboxes.
        most: u32,
    },
    /// All running sandboxes together would have too much memory.
    #[error(
        "cannot give a sandbox {asked_mib} MiB of memory: running sandboxes have {promised_mib} MiB, and the limit for all \
         sandboxes of this host together is {most_mib} MiB"
    )]
    Overcommitted {
        /// Requested memory in MiB.
        asked_mib: u64,
        /// Memory of the other running sandboxes in MiB.
        promised_mib: u64,
        /// Maximum memory of all running sandboxes in MiB.
        most_mib: u64,
    },
    /// The host has too little available memory.
    #[error(
        "cannot give a sandbox {asked_mib} MiB of memory: this host has {available_mib} MiB available, of which {floor_mib} MiB \
         must stay free"
    )]
    NoMemory {
        /// Requested memory in MiB.
        asked_mib: u64,
        /// `MemAvailable` of the host in MiB.
        available_mib: u64,
        /// Memory in MiB that has to stay free.
        floor_mib: u64,
    },
    /// The file system of the home has too little free space.
    #[error(
        "cannot give a sandbox {asked_mib} MiB of disk: the file system of {home} has {available_mib} MiB available, of which \
         {floor_mib} MiB must stay free"
    )]
    NoDisk {
        /// Requested disk space in MiB.
        asked_mib: u64,
        /// Free space in MiB.
        available_mib: u64,
        /// Space in MiB that has to stay free.
        floor_mib: u64,
        /// Path of the home.
        home: String,
    },
    /// The memory of the host cannot be read.
    #[error("cannot read the host's memory from /proc/meminfo: {0}")]
    Unknown(io::Error),
    /// The ledger cannot be read or written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// A request for a number of equal machines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) count: u32,
    pub(crate) memory: MemorySize,
    pub(crate) disk_bytes: u64,
}

/// Rejects a guest with more memory than the host has, no matter what else runs.
fn check_memory(asked: MemorySize, host: HostMemory) -> Result<(), AdmissionError> {
    let host_mib = host.total / MIB;
    if asked.mib() <= host_mib { Ok(()) } else { Err(AdmissionError::MoreThanTheHost { asked, host_mib }) }
}

/// Admits a sandbox whose directory exists, in staging or among the sandboxes: others recognise by
/// the directory that the sandbox still exists. If the sandbox was admitted before, its old entry
/// does not count.
pub(crate) fn admit(home: &Home, id: &SandboxId, memory: MemorySize, disk_bytes: u64) -> Result<(), AdmissionError> {
    let mut ledger = checked(home, Some(id), Request { count: 1, memory, disk_bytes })?;
    ledger.entries.push(Entry { id: id.clone(), mib: memory.mib() });
    Ok(ledger.write(home)?)
}

/// Rejects a request that would be rejected now. Reserves nothing.
pub(crate) fn foresee(home: &Home, request: Request) -> Result<(), AdmissionError> {
    checked(home, None, request).map(drop)
}

/// Checks a request against all sandboxes except `but`.
fn checked(home: &Home, but: Option<&SandboxId>, request: Request) -> Result<Ledger, AdmissionError> {
    let (rules, host) = (home.rules(), host_memory().map_err(AdmissionError::Unknown)?);
    check_memory(request.memory, host)?;
    check_free(home, rules, host, request)?;
    let mut ledger = Ledger::open(home)?;
    ledger.entries.retain(|entry| Some(&entry.id) != but);
    if check_sums(rules, host, request, &ledger.entries).is_err() {
        ledger.forget_the_gone(home);
        check_sums(rules, host, request, &ledger.entries)?;
    }
    Ok(ledger)
}

/// Checks the memory and disk space that are free now.
fn check_free(home: &Home, rules: &AdmissionRules, host: HostMemory, request: Request) -> Result<(), AdmissionError> {
    let floor = rules.free_memory.unwrap_or_else(|| default_memory_floor(host.total));
    let asked = request.memory.bytes();
    if floor > 0 && host.available < floor.saturating_add(asked) {
        return Err(AdmissionError::NoMemory {
            asked_mib: asked / MIB,
            available_mib: host.available / MIB,
            floor_mib: floor / MIB,
        });
    }
    check_room_by(home, rules, request.disk_bytes)
}

/// Fails if the home's file system would be below its floor after `asked` bytes were written.
pub(crate) fn check_room(home: &Home, asked: u64) -> Result<(), AdmissionError> {
    check_room_by(home, home.rules(), asked)
}

/// Returns how many bytes can be written to the home's file system until it is at its floor.
pub(crate) fn room(home: &Home) -> Result<u64, DirectoryError> {
    let (left, floor) = room_and_floor(home, home.rules())?;
    Ok(left.saturating_sub(floor))
}

/// Returns how many bytes of the home's file system stay free.
pub(crate) fn disk_floor(home: &Home) -> Result<u64, DirectoryError> {
    room_and_floor(home, home.rules()).map(|(_, floor)| floor)
}

fn room_and_floor(home: &Home, rules: &AdmissionRules) -> Result<(u64, u64), DirectoryError> {
    let root = home.root();
    let room = rustix::fs::statvfs(root).map_err(|error| DirectoryError::new("examine", root, error))?;
    let (size, left) = (room.f_blocks.saturating_mul(room.f_frsize), room.f_bavail.saturating_mul(room.f_frsize));
    Ok((left, rules.free_disk.unwrap_or_else(|| default_disk_floor(size))))
}

fn check_room_by(home: &Home, rules: &AdmissionRules, asked: u64) -> Result<(), AdmissionError> {
    let (left, floor) = room_and_floor(home, rules)?;
    if floor > 0 && left < floor.saturating_add(asked) {
        let home = home.root().display().to_string();
        return Err(AdmissionError::NoDisk {
            asked_mib: asked / MIB,
            available_mib: left / MIB,
            floor_mib: floor / MIB,
            home,
        });
    }
    Ok(())
}

/// Checks the number and the memory of all sandboxes.
fn check_sums(
    rules: &AdmissionRules,
    host: HostMemory,
    request: Request,
    others: &[Entry],
) -> Result<(), AdmissionError> {
    let (count, there) = (request.count, others.len());
    if rules.sandboxes > 0 && there as u64 + u64::from(count) > u64::from(rules.sandboxes) {
        return Err(AdmissionError::TooMany { count, there, most: rules.sandboxes });
    }
    let floor = rules.free_memory.unwrap_or_else(|| default_memory_floor(host.total));
    let most = u128::from(host.total.saturating_sub(floor)) * u128::from(rules.overcommit_percent) / 100 / MIB_U128;
    let most_mib = u64::try_from(most).unwrap_or(u64::MAX);
    let promised_mib = others.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.mib));
    let asked_mib = request.memory.mib().saturating_mul(u64::from(count));
    if rules.overcommit_percent > 0 && promised_mib.saturating_add(asked_mib) > most_mib {
        return Err(AdmissionError::Overcommitted { asked_mib, promised_mib, most_mib });
    }
    Ok(())
}

/// Returns a twentieth of the memory, clamped to 256 MiB to 2 GiB.
fn default_memory_floor(total: u64) -> u64 {
    (total / 20).clamp(256 * MIB, 2048 * MIB)
}

/// Returns a twentieth of the file system, at most 1 GiB.
fn default_disk_floor(size: u64) -> u64 {
    (size / 20).min(1024 * MIB)
}

/// The host's memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// Total memory.
    pub total: u64,
    /// Memory that new processes can use without swapping.
    pub available: u64,
}

/// Reads the host's memory from /proc/meminfo.
///
/// # Errors
/// When the file cannot be read or lacks one of the two lines.
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

    fn id(number: usize) -> SandboxId {
        SandboxId::try_from(format!("sandbox{number:05}")).unwrap()
    }

    fn request(count: u32, mib: u64) -> Request {
        Request { count, memory: MemorySize::try_from(mib * MIB).unwrap(), disk_bytes: 64 * MIB }
    }

    fn home(rules: AdmissionRules) -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::open(&directory.path().join("home")).unwrap().with_rules(rules);
        (directory, home)
    }

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24689124 kB\nMemFree:  1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(parse(text), Some(HostMemory { total: 24_689_124 * 1024, available: 23_000_000 * 1024 }));
        assert_eq!(parse("MemTotal: x kB\n"), None);
    }

    #[test]
    fn memory_beyond_the_hosts_is_rejected() {
        let host = HostMemory { total: 24 << 30, available: 0 };
        check_memory(MemorySize::try_from(MemorySize::MIN).unwrap(), host).unwrap();
        let message = check_memory(MemorySize::try_from(MemorySize::MAX).unwrap(), host).unwrap_err().to_string();
        assert!(message.contains("65536 MiB of memory: this host has 24576 MiB"), "{message}");
    }

    #[test]
    fn clones_fit_by_overcommit_where_their_sum_does_not() {
        let host = HostMemory { total: 24 << 30, available: 20 << 30 };
        let others = |count: usize| (0..count).map(|n| Entry { id: id(n), mib: 256 }).collect::<Vec<_>>();
        let check = |rules: AdmissionRules, count| check_sums(&rules, host, request(1, 256), &others(count));
        let rules = AdmissionRules::default();
        check(rules, 299).unwrap();
        let message = check(rules, 400).unwrap_err().to_string();
        assert!(message.contains("have 102400 MiB"), "{message}");
        let honest = AdmissionRules { overcommit_percent: 100, ..rules };
        check(honest, 80).unwrap();
        assert!(matches!(check(honest, 299), Err(AdmissionError::Overcommitted { .. })));
        check(AdmissionRules { overcommit_percent: 0, ..rules }, 4000).unwrap();
        assert!(matches!(
            check(AdmissionRules { sandboxes: 7, ..rules }, 7),
            Err(AdmissionError::TooMany { there: 7, .. })
        ));
    }

    #[test]
    fn memory_and_disk_floors_are_preserved() {
        let none = AdmissionRules { free_memory: Some(0), free_disk: Some(0), ..AdmissionRules::default() };
        let (_dir, plain) = home(none);
        let host = HostMemory { total: 8 << 30, available: 300 * MIB };
        check_free(&plain, &none, host, request(1, 256)).unwrap();
        let rules = AdmissionRules { free_memory: Some(100 * MIB), ..none };
        let message = check_free(&plain, &rules, host, request(1, 256)).unwrap_err().to_string();
        assert!(message.contains("has 300 MiB available, of which 100 MiB must stay free"), "{message}");
        check_free(&plain, &rules, host, request(1, 128)).unwrap();
        let rules = AdmissionRules { free_disk: Some(1 << 60), ..none };
        let message = check_free(&plain, &rules, host, request(1, 256)).unwrap_err().to_string();
        assert!(message.contains("64 MiB of disk"), "{message}");
    }

    #[test]
    fn concurrent_admissions_stay_within_the_limit() {
        let (_dir, home) = home(AdmissionRules {
            sandboxes: 5,
            free_memory: Some(0),
            free_disk: Some(0),
            ..AdmissionRules::default()
        });
        let least = MemorySize::try_from(64 * MIB).unwrap();
        let admitted: usize = std::thread::scope(|scope| {
            let one = |number: usize| {
                let home = &home;
                move || {
                    fs::create_dir(home.staged(&id(number))).unwrap();
                    usize::from(admit(home, &id(number), least, 0).is_ok())
                }
            };
            let all: Vec<_> = (0..20).map(|number| scope.spawn(one(number))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 5);
        // Sandboxes that are gone make room, even if no process removed their entries.
        let gone = Ledger::open(&home).unwrap().entries.remove(0).id;
        fs::remove_dir(home.staged(&gone)).unwrap();
        fs::create_dir(home.staged(&id(77))).unwrap();
        admit(&home, &id(77), least, 0).unwrap();
        admit(&home, &id(77), least, 0).unwrap();
        foresee(&home, request(1, 64)).unwrap_err();
        assert!(matches!(admit(&home, &id(78), least, 0), Err(AdmissionError::TooMany { there: 5, .. })));
    }
}
