//! `bench jail`: what each part of the VMM's confinement costs a restored machine, from its process's first instruction to its
//! guest's, by leaving it out. A machine of a few instructions, in the build that can leave parts out.

use crate::{
    rig::Runs,
    table::{self, Row},
};
use sandboxvm_tests::drills::{Drill, Snapshot};

/// Protections as `vmm/src/confine/switches.rs` names them.
const VARIANTS: [(&str, &str); 7] = [
    ("all of it", ""),
    ("no network namespace", "network"),
    ("no mount namespace", "mount"),
    ("no user of its own", "user"),
    ("no narrower filters", "thread-seccomp"),
    ("no filters", "seccomp"),
    ("nothing", "descriptors,mount,network,user,limits,seccomp"),
];

pub fn run(arguments: &Runs) {
    let mut first = Drill::of("read-inherited").at(-1).start(None);
    first.runs();
    let snapshot = first.snapshot();
    let mut times = vec![(Vec::new(), Vec::new()); VARIANTS.len()];
    // In turns: whatever else the machine does meets all of them.
    for _ in 0..arguments.runs {
        for ((_, without), (confined, first_run)) in VARIANTS.iter().zip(&mut times) {
            let (until_confined, until_first_run) = measure(without, &snapshot);
            confined.push(until_confined);
            first_run.push(until_first_run);
        }
    }
    let rows: Vec<Row> = VARIANTS
        .iter()
        .zip(times)
        .flat_map(|((name, _), (confined, first_run))| {
            [
                Row::of(format!("{name}: process start to confined"), "us", fastest(confined)),
                Row::of(format!("{name}: ... less waiting, to first run"), "us", fastest(first_run)),
            ]
        })
        .collect();
    let title = format!(
        "Restore of a tiny machine with parts of the jail left out, the fastest quarter of {} runs each, in turns",
        arguments.runs
    );
    table::report(&title, &rows, arguments.json);
}

/// The fastest quarter: parts are compared with each other here, and a busy machine must not hide what they cost.
fn fastest(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values.truncate(values.len().div_ceil(4));
    values
}

/// Microseconds from the process's start to being confined, and to the first guest instruction but for waiting.
fn measure(without: &'static str, snapshot: &Snapshot) -> (f64, f64) {
    let times = Drill::of("read-inherited").at(-1).without(without).start(Some(snapshot)).timeline();
    let confined = times.confined - times.process_start;
    let first_run = times.first_run.unwrap_or(times.launched) - times.launched;
    #[expect(clippy::cast_precision_loss, reason = "some milliseconds")]
    let micros = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    (micros(confined), micros(confined + first_run))
}
