//! Shared parts of the benchmarks of snapshots: a separate home, the manager as a library, and a
//! writer in the guest.

use sandboxvm_manager::{ExitStatus, Sandbox, StartedSandbox, VmStats};
use sandboxvm_tests::{
    home::Home,
    library::{Library, execute, run},
};
use std::{
    ops::Deref,
    time::{Duration, Instant},
};

/// Takes 64 MiB of memory, page by page. Then rewrites 4 MiB of them several times a second, until
/// a file tells it to stop.
pub const WRITER: &str = "
import os, time
b = bytearray(64 << 20)
for i in range(0, len(b), 4096): b[i] = 1
open('/dev/shm/written', 'w').close()
n = 1
while not os.path.exists('/dev/shm/rest'):
    n = n % 255 + 1
    for i in range(0, 4 << 20, 4096): b[i] = n
    time.sleep(0.05)
open('/dev/shm/rests', 'w').close()
time.sleep(1e9)";

/// Options of all benchmarks of single runs. A benchmark with slow runs sets another default with
/// `mut_arg`.
#[derive(Debug, clap::Args)]
pub struct Runs {
    /// Number of runs
    #[arg(short = 'n', long = "runs", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    pub runs: u16,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// A manager in a home that is removed at the end.
pub struct Rig {
    library: Library,
    // Dropped last, because everything above is in it.
    _home: Home,
}

impl Deref for Rig {
    type Target = Library;

    fn deref(&self) -> &Library {
        &self.library
    }
}

impl Rig {
    pub fn new(memory_mib: u64) -> Self {
        let home = Home::with_kvm().expect("a benchmark without KVM measures nothing: unset SANDBOXVM_NO_KVM");
        Self { library: Library::of(&home, memory_mib), _home: home }
    }

    /// Creates a sandbox from the ready snapshot, which the first call creates.
    pub async fn create(&self) -> StartedSandbox {
        self.manager.create(&self.bundle, &self.spec).await.unwrap_or_else(|error| panic!("create: {error}"))
    }

    /// Creates a sandbox in which [`WRITER`] runs.
    pub async fn create_writing(&self) -> StartedSandbox {
        let started = self.create().await;
        let command = format!("(setsid python3 -c \"{WRITER}\"; echo ended with $?) </dev/null >/dev/shm/said 2>&1 &");
        run(started.sandbox(), &["sh", "-c", &command]).await;
        let deadline = Instant::now() + Duration::from_secs(300);
        while execute(started.sandbox(), &["test", "-e", "/dev/shm/written"]).await.0 != ExitStatus::Code(0) {
            if Instant::now() > deadline {
                let said = run(started.sandbox(), &["cat", "/dev/shm/said"]).await;
                panic!("the guest does not get 64 MiB written: {said}");
            }
        }
        started
    }

    /// Makes [`WRITER`] keep its memory and stop writing, because many copies that write only
    /// compete with each other.
    pub async fn rest(&self, writing: &Sandbox) {
        run(writing, &["sh", "-c", "> /dev/shm/rest; until [ -e /dev/shm/rests ]; do sleep 0.1; done"]).await;
    }
}

/// Returns the number of guest-kernel instructions so far, if KVM counts them.
pub fn instructions(stats: &VmStats) -> f64 {
    stats.vcpus.iter().map(|vcpu| vcpu.insn_emulation as f64).sum()
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Converts an instant to CLOCK_MONOTONIC, which [`sandboxvm_manager::Timeline`] uses.
pub fn monotonic_ns(instant: Instant) -> f64 {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = clock.tv_sec as f64 * 1e9 + clock.tv_nsec as f64;
    now - instant.elapsed().as_secs_f64() * 1e9
}
