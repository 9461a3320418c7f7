//! `bench jail`: the cost of each part of the VMM's jail for a restored machine, from the first
//! instruction of its process to that of its guest. Measured by leaving the part out, in the build
//! that can, with a machine of a few instructions.

use crate::{
    rig::Runs,
    table::{self, Row},
};
use sandboxvm_tests::drills::{Drill, Snapshot};

/// Names of protections in `vmm/src/confine/switches.rs`.
const VARIANTS: [(&str, &str); 7] = [
    ("all of it", ""),
    ("no network namespace", "network"),
    ("no mount namespace", "mount"),
    ("no separate user", "user"),
    ("no narrower filters", "thread-seccomp"),
    ("no filters", "seccomp"),
    ("nothing", "descriptors,mount,network,user,limits,seccomp"),
];

pub fn run(arguments: &Runs) {
    let mut first = Drill::of("read-inherited").at(-1).start(None);
    first.runs();
    let snapshot = first.snapshot();
    let mut times = vec![(Vec::new(), Vec::new()); VARIANTS.len()];
    // The variants take turns, so that other work on the machine affects all of them.
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

/// Returns the fastest quarter. The variants are compared with each other, and a busy machine must
/// not hide their cost.
fn fastest(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values.truncate(values.len().div_ceil(4));
    values
}

/// Returns two times in microseconds: from the start of the process until it is confined, and until
/// the first guest instruction without the time that it waits.
fn measure(without: &'static str, snapshot: &Snapshot) -> (f64, f64) {
    let times = Drill::of("read-inherited").at(-1).without(without).start(Some(snapshot)).timeline();
    let confined = times.confined - times.process_start;
    let first_run = times.first_run.unwrap_or(times.launched) - times.launched;
    #[expect(clippy::cast_precision_loss, reason = "some milliseconds")]
    let micros = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    (micros(confined), micros(confined + first_run))
}
