//! Resident memory of processes, from `/proc/PID/smaps` (proc_pid_smaps(5)). The guest memory of a
//! VMM is counted separately: it is the mapping with the size of the guest's memory, or two around
//! the MMIO hole.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Resident memory of a VMM in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmmMemory {
    /// Guest memory.
    pub guest_kib: u64,
    /// The part of the guest memory that no other process shares.
    pub guest_private_kib: u64,
    /// All other memory, including shared pages of files.
    pub overhead_kib: u64,
    /// The part of the overhead that no other process shares.
    pub overhead_private_kib: u64,
    /// The part of that which was written. It does not depend on other processes of the same
    /// program.
    pub overhead_dirty_kib: u64,
}

#[derive(Debug)]
struct Mapping {
    size_kib: u64,
    rss_kib: u64,
    private_kib: u64,
    dirty_kib: u64,
}

fn mappings(pid: u32) -> Option<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), value) = (words.next(), words.next()) else { continue };
        let kib = || value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        match key {
            "Size:" => mappings.push(Mapping { size_kib: kib(), rss_kib: 0, private_kib: 0, dirty_kib: 0 }),
            "Rss:" => mappings.last_mut()?.rss_kib = kib(),
            "Private_Clean:" => mappings.last_mut()?.private_kib += kib(),
            "Private_Dirty:" => {
                let mapping = mappings.last_mut()?;
                mapping.private_kib += kib();
                mapping.dirty_kib = kib();
            }
            _ => {}
        }
    }
    Some(mappings)
}

/// Measures a VMM whose guest has `guest_mib` of memory, which must be below the MMIO hole (at most
/// 3 GiB).
///
/// # Panics
/// Panics if the process has no mapping that could be the guest's memory.
#[must_use]
pub fn of_vmm(pid: u32, guest_mib: u64) -> VmmMemory {
    try_of_vmm(pid, guest_mib).unwrap_or_else(|| panic!("process {pid} maps no guest memory of {guest_mib} MiB"))
}

/// As [`of_vmm`], but returns `None` if there is no such process, or if it has no such memory.
pub(crate) fn try_of_vmm(pid: u32, guest_mib: u64) -> Option<VmmMemory> {
    let mappings = mappings(pid)?;
    // The mapping may be somewhat larger, as the kernel may have merged a small neighbour into it.
    let wanted = guest_mib * 1024..guest_mib * 1024 + 4096;
    let guest = mappings.iter().filter(|mapping| wanted.contains(&mapping.size_kib)).max_by_key(|m| m.rss_kib)?;
    let sum = |of: fn(&Mapping) -> u64| mappings.iter().map(of).sum::<u64>() - of(guest);
    Some(VmmMemory {
        guest_kib: guest.rss_kib,
        guest_private_kib: guest.private_kib,
        overhead_kib: sum(|mapping| mapping.rss_kib),
        overhead_private_kib: sum(|mapping| mapping.private_kib),
        overhead_dirty_kib: sum(|mapping| mapping.dirty_kib),
    })
}

/// Returns the memory of a process in KiB, where each page counts for its share, or `None` if it has
/// ended.
#[must_use]
pub fn proportional_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Returns `VmRSS` of a process in KiB, or `None` if it has ended.
#[must_use]
pub fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Measures the memory of a process until it is stopped, and keeps the peak.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    samples: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Sampler {
    /// Samples `VmRSS` every 20 ms.
    #[must_use]
    pub fn of_process(pid: u32) -> Self {
        Self::start(move || resident_kib(pid))
    }

    /// Samples the memory of a VMM without its guest's, every 20 ms.
    #[must_use]
    pub fn of_vmm_overhead(pid: u32, guest_mib: u64) -> Self {
        Self::start(move || Some(try_of_vmm(pid, guest_mib)?.overhead_kib))
    }

    fn start(measure: impl Fn() -> Option<u64> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peak = Arc::new(AtomicU64::new(0));
        let samples = Arc::new(AtomicU64::new(0));
        let (theirs, their_peak, their_samples) = (Arc::clone(&stop), Arc::clone(&peak), Arc::clone(&samples));
        let thread = std::thread::spawn(move || {
            while !theirs.load(Ordering::Relaxed) {
                if let Some(kib) = measure() {
                    their_peak.fetch_max(kib, Ordering::Relaxed);
                    their_samples.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stop, peak, samples, thread }
    }

    /// Stops, and returns the peak in KiB.
    ///
    /// # Panics
    /// Panics if the process was never measured.
    #[must_use]
    pub fn peak_kib(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler does not panic");
        assert!(self.samples.load(Ordering::Relaxed) > 0, "the process was never measured");
        self.peak.load(Ordering::Relaxed)
    }
}
