//! `bench neighbours`: how long one sandbox takes for `exec true` while another one attacks from
//! the inside, compared with the time while the other one is idle. The two measurements take turns,
//! so that they compare on a busy machine.

use crate::{
    rig::{Rig, Runs, instructions},
    table::{self, Row},
};
use sandboxvm_manager::{OnDisconnect, ProcessSpec, Sandbox, SignalNumber};
use sandboxvm_tests::library::run as exec;
use std::time::{Duration, Instant};

/// Names of the attacks, and their shell scripts.
const ATTACKS: [(&str, &str); 5] = [
    ("while :; do :; done", "while :; do :; done"),
    ("a fork bomb", "b() { b | b & }; b; exec sleep 1000"),
    ("yes without a reader", "exec yes"),
    ("dd onto its disk", "while :; do dd if=/dev/zero of=/big bs=64k; done"),
    (
        "100 GiB of memory",
        "while :; do python3 -c 'import mmap; \
         mmap.mmap(-1, 100 << 30, 0x4000 | 0x8000 | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)'; done",
    ),
];

/// Time that an attack needs to start.
const UNDER_WAY: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(mut_arg("runs", |runs| runs.default_value("5")))]
pub struct Arguments {
    #[command(flatten)]
    pub all: Runs,
    /// Guest memory in MiB
    #[arg(short, long, default_value_t = 256)]
    memory: u64,
}

pub fn run(arguments: &Arguments) {
    let rig = Rig::new(arguments.memory);
    let mut rows = Vec::new();
    rig.block_on(async {
        let (neighbour, attacked) = (rig.create().await, rig.create().await);
        // The first command finds nothing in the guest's page cache, so it is not measured.
        exec(neighbour.sandbox(), &["true"]).await;
        for (name, script) in ATTACKS {
            eprintln!("bench: {name}");
            let (quiet, cost) = answers(neighbour.sandbox(), arguments.all.runs).await;
            let pid = begin(attacked.sandbox(), script).await;
            tokio::time::sleep(UNDER_WAY).await;
            let (busy, cost_beside) = answers(neighbour.sandbox(), arguments.all.runs).await;
            attacked.sandbox().signal(pid, SignalNumber::KILL).await.expect("the agent answers");
            let (quiet, busy) = (Row::of("idle", "s", quiet), Row::of("busy", "s", busy));
            let times = busy.p50 / quiet.p50;
            rows.extend([
                Row { name: format!("`true` beside an idle one, before {name}").into(), ..quiet },
                Row { name: format!("`true` beside {name}").into(), ..busy },
                Row::of("  times as long", "x", [times]),
                Row::of("  guest-kernel instructions for it, idle", "insns", cost),
                Row::of("  guest-kernel instructions for it, busy", "insns", cost_beside),
            ]);
        }
        for started in [neighbour, attacked] {
            started.finish().await.expect("the sandbox can be removed");
        }
    });
    let title = format!("neighbours: {} commands each, guests of {} MiB", arguments.all.runs, arguments.memory);
    table::report(&title, &rows, arguments.all.json);
}

/// Returns the duration in seconds and the guest-kernel instructions of each of `runs` commands.
async fn answers(sandbox: &Sandbox, runs: u16) -> (Vec<f64>, Vec<f64>) {
    let count = async || instructions(&sandbox.stats().await.expect("the VMM responds"));
    let (mut seconds, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (before, begun) = (count().await, Instant::now());
        exec(sandbox, &["true"]).await;
        seconds.push(begun.elapsed().as_secs_f64());
        costs.push(count().await - before);
    }
    (seconds, costs)
}

/// Starts a shell script in the background and returns its PID.
async fn begin(sandbox: &Sandbox, script: &str) -> u32 {
    let spec = ProcessSpec::builder(["sh", "-c", script]).on_disconnect(OnDisconnect::Keep).build();
    sandbox.exec(spec.expect("a command that can be run")).await.expect("the other sandbox answers").pid
}
