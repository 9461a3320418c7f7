//! The use of resources by a VMM while its guest attacks it: peaks of memory without the guest's,
//! of descriptors and of threads, and whether the VMM becomes idle.

use crate::host::{memory, processes};
use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Maximum use of resources by a VMM.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Memory in KiB that no other process shares and that is not the guest's.
    pub private_kib: u64,
    /// Number of open descriptors.
    pub descriptors: usize,
}

impl Bounds {
    /// For a guest without connections from the host. An idle VMM has about 500 KiB and 40
    /// descriptors.
    pub const QUIET: Self = Self { private_kib: 4 << 10, descriptors: 64 };
}

/// The highest values that were measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peaks {
    pub(super) private_kib: u64,
    pub(super) descriptors: usize,
    pub(super) threads: usize,
    samples: u64,
}

/// Measures a process until it is stopped.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Arc<AtomicBool>,
    peaks: Arc<Mutex<Peaks>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn of(pid: u32, guest_mib: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peaks = Arc::new(Mutex::new(Peaks::default()));
        let (theirs, seen) = (Arc::clone(&stop), Arc::clone(&peaks));
        let thread = thread::spawn(move || {
            while !theirs.load(Ordering::Relaxed) {
                look(pid, guest_mib, &seen);
                thread::sleep(Duration::from_millis(25));
            }
        });
        Self { stop, peaks, thread: Some(thread) }
    }

    pub(super) fn peaks(&self) -> Peaks {
        *self.peaks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread only reads files and does not panic. If it does, the test has failed
            // already.
            let _ = thread.join();
        }
    }
}

fn look(pid: u32, guest_mib: u64, seen: &Mutex<Peaks>) {
    // A process that has ended, or that has no guest memory yet, is not measured.
    let Some(memory) = memory::try_of_vmm(pid, guest_mib) else { return };
    let (Some(descriptors), Some(threads)) = (entries(pid, "fd"), threads(pid)) else { return };
    let mut peaks = seen.lock().unwrap_or_else(PoisonError::into_inner);
    peaks.private_kib = peaks.private_kib.max(memory.overhead_private_kib);
    peaks.descriptors = peaks.descriptors.max(descriptors);
    peaks.threads = peaks.threads.max(threads);
    peaks.samples += 1;
}

fn entries(pid: u32, what: &str) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/{what}")).ok()?.count())
}

/// Returns the number of threads, without those that KVM in the kernel adds to the process
/// (`kvm-nx-lpage-re...`).
fn threads(pid: u32) -> Option<usize> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    Some(names.filter(|name| !name.starts_with("kvm-")).count())
}

/// How long the threads of what `path` in /proc is have used a processor so far, or waited for one
/// (Documentation/scheduler/sched-stats.rst). A thread that spins does one of both at any moment, however busy the host is.
fn demand(path: &str) -> Option<Duration> {
    let files: Vec<PathBuf> = match fs::read_dir(format!("/proc/{path}/task")) {
        Ok(tasks) => tasks.flatten().map(|task| task.path().join("schedstat")).collect(),
        Err(_) => vec![format!("/proc/{path}/schedstat").into()],
    };
    let of = |file: &PathBuf| {
        let text = fs::read_to_string(file).ok()?;
        let mut fields = text.split_whitespace().map(|field| field.parse().ok());
        Some(Duration::from_nanos(fields.next()??) + Duration::from_nanos(fields.next()??))
    };
    files.iter().map(of).sum()
}

/// Whether the process wants (almost) no processor time for a moment, within some patience. One that spins always wants it.
pub(super) fn comes_to_rest(pid: u32) -> bool {
    rests(pid, &pid.to_string())
}

/// As [`comes_to_rest`], for the first thread of the process, which runs the event loop.
pub(super) fn loop_comes_to_rest(pid: u32) -> bool {
    rests(pid, &format!("{pid}/task/{pid}"))
}

/// Whether its first thread wants the processor for a moment, within some patience.
pub(super) fn loop_works(pid: u32) -> bool {
    let path = format!("{pid}/task/{pid}");
    (0..100).any(|_| {
        let Some(before) = demand(&path) else { return false };
        thread::sleep(LOOK);
        demand(&path).is_some_and(|after| after > before + A_MOMENT)
    })
}

const LOOK: Duration = Duration::from_millis(200);
/// Part of a look in which a process at rest may have something to do.
const A_MOMENT: Duration = Duration::from_millis(20);

fn rests(pid: u32, path: &str) -> bool {
    (0..50).any(|_| {
        let Some(before) = demand(path) else { return false };
        thread::sleep(LOOK);
        processes::is_alive(pid) && demand(path).is_some_and(|after| after <= before + A_MOMENT)
    })
}
