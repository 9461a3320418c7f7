//! `bench reset`: a sandbox that has run a command is reset to its beginning in place.

use crate::{
    rig::{Rig, Runs, micros},
    table::{self, Row},
};
use sandboxvm_manager::ResetDone;
use sandboxvm_tests::library::run as exec;
use std::time::{Duration, Instant};

pub fn run(arguments: &Runs) {
    let rig = Rig::new(256);
    let mut pauses = Vec::new();
    let mut wholes = Vec::new();
    rig.block_on(async {
        let started = rig.create().await;
        for run in 1..=arguments.runs {
            eprintln!("bench: reset {run} of {}", arguments.runs);
            exec(started.sandbox(), &["true"]).await;
            let begun = Instant::now();
            let done = started.sandbox().reset(&rig.bundle, None, Duration::from_secs(300), || ()).await;
            wholes.push(begun.elapsed().as_secs_f64() * 1e3);
            match done.unwrap_or_else(|error| panic!("reset: {error}")) {
                ResetDone::InPlace(report) => pauses.push(micros(Duration::from_nanos(report.pause_ns))),
                ResetDone::Replaced => panic!("the sandbox was not reset in place"),
            }
        }
        started.finish().await.expect("the sandbox can be removed");
    });
    let rows = [
        Row::of("vCPU stopped -> runs from the beginning", "us", pauses),
        Row::of("whole command, until the guest has its identity", "ms", wholes),
    ];
    table::report(&format!("reset: {} runs after a `true`, guest of 256 MiB", arguments.runs), &rows, arguments.json);
}
