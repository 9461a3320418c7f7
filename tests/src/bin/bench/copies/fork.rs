//! `bench fork`: live forks of a sandbox that has written 64 MiB and rewrites 4 MiB of them all the
//! time. Then many copies of it in one request, while it is idle.

use crate::{
    rig::{Rig, Runs, micros},
    table::{self, Row},
};
use sandboxvm_manager::Sandbox;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    all: Runs,
    /// Number of copies of the last request
    #[arg(long, default_value_t = 100)]
    many: u32,
}

pub fn run(arguments: &Arguments) {
    let rig = Rig::new(256);
    eprintln!("bench: a sandbox that writes 64 MiB");
    let parent = rig.block_on(rig.create_writing());
    let mut pauses = Vec::new();
    let mut builds = Vec::new();
    let mut made = Vec::new();
    for run in 1..=arguments.all.runs {
        eprintln!("bench: fork {run} of {}", arguments.all.runs);
        let one = rig.block_on(fork(&rig, parent.sandbox(), 1));
        pauses.push(micros(one.pause));
        builds.extend(one.builds);
        made.push(micros(one.made));
    }
    let mut rows = vec![
        Row::of("pause of the parent", "us", pauses),
        Row::of("copy: process -> machine built", "us", builds),
        Row::of("asked -> the copy stands ready to run", "us", made),
    ];
    if arguments.many > 0 {
        eprintln!("bench: {} copies in one go", arguments.many);
        rig.block_on(rig.rest(parent.sandbox()));
        let many = rig.block_on(fork(&rig, parent.sandbox(), arguments.many));
        rows.extend([
            Row::of("all pauses of the parent, many in one go", "us", [micros(many.pause)]),
            Row::of("asked -> all copies stand ready to run, many in one go", "us", [micros(many.made)]),
        ]);
    }
    rig.block_on(parent.finish()).expect("the sandbox can be removed");
    let title =
        format!("fork: {} runs, then {} copies in one go, guest of 256 MiB", arguments.all.runs, arguments.many);
    table::report(&title, &rows, arguments.all.json);
}

/// Durations of one request.
struct Taken {
    /// Total time for which the parent stood still.
    pause: Duration,
    /// Time from the request until all copies were ready to run.
    made: Duration,
    /// For each copy, the time in microseconds from the start of its process until its machine was
    /// ready.
    builds: Vec<f64>,
}

async fn fork(rig: &Rig, parent: &Sandbox, count: u32) -> Taken {
    let forked = parent.fork(count).await.unwrap_or_else(|error| panic!("fork: {error}"));
    let mut builds = Vec::with_capacity(forked.copies.len());
    for copy in forked.copies {
        let timeline = copy.timeline().await.expect("the VMM responds");
        builds.push((timeline.built.expect("the machine was built") - timeline.process_start) as f64 / 1e3);
        rig.manager.remove(copy.id().as_str(), true).await.expect("the sandbox can be removed");
    }
    Taken { pause: forked.pauses.iter().sum(), made: forked.made, builds }
}
