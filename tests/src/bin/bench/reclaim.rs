//! `bench reclaim`: a guest takes and frees memory. Measures how much of it the host gets back by
//! free page reporting.

use crate::{
    rig::{Rig, Runs, instructions},
    table::{self, Row},
};
use sandboxvm_manager::{ExitStatus, Sandbox};
use sandboxvm_tests::{
    host::memory,
    library::{execute, run as exec},
};
use std::time::{Duration, Instant};

/// Linux reports only while more than 128 MiB and a reserve are free.
const MEMORY_MIB: u64 = 512;
/// Longest wait for reports. Linux makes one every two seconds while it has something to report.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this time without a change no more reports are expected.
const QUIET: Duration = Duration::from_secs(8);

#[derive(Debug, clap::Args)]
#[command(mut_arg("runs", |runs| runs.default_value("3")))]
pub struct Arguments {
    #[command(flatten)]
    pub all: Runs,
    /// Memory in MiB that the guest takes and frees
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(16..=256))]
    mib: u64,
}

/// Memory in MiB that only the guest has, at each step.
struct Reclaim {
    before: f64,
    taken: f64,
    after: f64,
    seconds: f64,
    instructions: f64,
}

pub fn run(arguments: &Arguments) {
    let rig = Rig::new(MEMORY_MIB);
    let mut runs = Vec::new();
    for run in 1..=arguments.all.runs {
        eprintln!("bench: reclaim {run} of {}", arguments.all.runs);
        runs.push(rig.block_on(async {
            let started = rig.create().await;
            let reclaim = reclaim(started.sandbox(), arguments.mib).await;
            started.finish().await.expect("the sandbox can be removed");
            reclaim
        }));
    }
    let of = |name: &'static str, unit, value: fn(&Reclaim) -> f64| Row::of(name, unit, runs.iter().map(value));
    let rows = [
        of("private memory of the guest: before", "MiB", |run| run.before),
        of("  with the memory taken", "MiB", |run| run.taken),
        of("  after it was freed and reported", "MiB", |run| run.after),
        of("given back, of what was taken", "%", |run| 100.0 * (run.taken - run.after) / (run.taken - run.before)),
        of("freed -> the last of it given back", "s", |run| run.seconds),
        of("guest-kernel instructions meanwhile", "insns", |run| run.instructions),
    ];
    let title =
        format!("reclaim: {} runs, {} MiB taken and freed, guest of {MEMORY_MIB} MiB", runs.len(), arguments.mib);
    table::report(&title, &rows, arguments.all.json);
}

async fn reclaim(sandbox: &Sandbox, mib: u64) -> Reclaim {
    let pid = sandbox.vmm_status().ok().flatten().expect("the VMM has written its status").pid;
    let private_mib = || memory::of_vmm(pid, MEMORY_MIB).guest_private_kib as f64 / 1024.0;
    let before = private_mib();
    let taker = format!(
        "vec($taken, ({mib} << 20) - 1, 8) = 1; open F, '>/dev/shm/taken'; close F; \
         select undef, undef, undef, 0.2 until -e '/dev/shm/free'"
    );
    exec(
        sandbox,
        &["sh", "-c", "setsid sh -c 'perl -e \"$0\"; > /dev/shm/freed' \"$0\" </dev/null >/dev/null 2>&1 &", &taker],
    )
    .await;
    appears(sandbox, "/dev/shm/taken").await;
    let taken = private_mib();
    exec(sandbox, &["sh", "-c", "> /dev/shm/free"]).await;
    appears(sandbox, "/dev/shm/freed").await;
    let count = async || instructions(&sandbox.stats().await.expect("the VMM responds"));
    let (freed, executed) = (Instant::now(), count().await);
    let (mut after, mut changed) = (private_mib(), freed);
    while freed.elapsed() < PATIENCE && changed.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = private_mib();
        if now < after {
            (after, changed) = (now, Instant::now());
        }
    }
    Reclaim { before, taken, after, seconds: (changed - freed).as_secs_f64(), instructions: count().await - executed }
}

async fn appears(sandbox: &Sandbox, path: &str) {
    let deadline = Instant::now() + Duration::from_secs(600);
    while execute(sandbox, &["test", "-e", path]).await.0 != ExitStatus::Code(0) {
        assert!(Instant::now() < deadline, "the guest does not get to {path}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
