//! `bench snapshot`: a sandbox has written 64 MiB and rewrites 4 MiB of them all the time. Measures
//! snapshots of the difference, and snapshots of everything.

use crate::{
    rig::{Rig, Runs},
    table::{self, Row},
};
use sandboxvm_manager::SandboxName;
use std::time::{Duration, Instant};

struct Taken {
    ms: f64,
    pause_us: f64,
    mib: f64,
    self_contained: bool,
}

pub fn run(arguments: &Runs) {
    let rig = Rig::new(256);
    eprintln!("bench: a sandbox that writes 64 MiB");
    let mut taken = Vec::new();
    rig.block_on(async {
        let started = rig.create_writing().await;
        for run in 0..=arguments.runs {
            eprintln!("bench: snapshot {run} of {}", arguments.runs);
            // The guest rewrites its 4 MiB in this time.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let name = SandboxName::try_from(format!("bench-{run}")).expect("a name");
            let begun = Instant::now();
            let made = started.sandbox().snapshot(name.clone()).await.unwrap_or_else(|error| panic!("{error}"));
            taken.push(Taken {
                ms: begun.elapsed().as_secs_f64() * 1e3,
                pause_us: made.report.pause_ns as f64 / 1e3,
                mib: made.report.memory_bytes as f64 / f64::from(1 << 20),
                self_contained: made.report.self_contained,
            });
            rig.manager.remove_snapshot(name.as_str()).expect("the snapshot can be removed");
        }
        started.finish().await.expect("the sandbox can be removed");
    });
    // The first snapshot has everything that was written since the beginning, so it is not counted.
    let first = taken.remove(0);
    let (whole, differences): (Vec<Taken>, Vec<Taken>) = taken.into_iter().partition(|one| one.self_contained);
    let mut rows = rows("difference of 4 MiB", &differences);
    rows.extend(self::rows("first, 64 MiB written", &[first]));
    if !whole.is_empty() {
        rows.extend(self::rows("flattened", &whole));
    }
    let title = format!("snapshot: {} runs, {} of them written whole, guest of 256 MiB", arguments.runs, whole.len());
    table::report(&title, &rows, arguments.json);
}

fn rows(kind: &str, taken: &[Taken]) -> Vec<Row> {
    vec![
        Row::of(format!("{kind}: until durable"), "ms", taken.iter().map(|one| one.ms)),
        Row::of(format!("{kind}: pause of the guest"), "us", taken.iter().map(|one| one.pause_us)),
        Row::of(format!("{kind}: memory written"), "MiB", taken.iter().map(|one| one.mib)),
    ]
}
