//! `bench fork`: live forks of a sandbox in which 64 MiB were written and 4 MiB are rewritten all the time;
//! then many copies of it at once, when it has come to rest.

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
    /// Then so many copies in one go
    #[arg(long, default_value_t = 100)]
    many: u32,
}

pub fn run(arguments: &Arguments) {
    let rig = Rig::new(256);
    eprintln!("bench: a sandbox that writes 64 MiB");
    let parent = rig.block_on(rig.create_writing());
    let mut pauses = Vec::new();
    let mut builds = Vec::new();
    for run in 1..=arguments.all.runs {
        eprintln!("bench: fork {run} of {}", arguments.all.runs);
        let (pause, build) = rig.block_on(fork(&rig, parent.sandbox(), 1));
        pauses.push(micros(pause));
        builds.extend(build);
    }
    let mut rows = vec![
        Row::of("pause of the parent", "us", pauses),
        Row::of("copy: process -> first guest instruction", "us", builds),
    ];
    if arguments.many > 0 {
        eprintln!("bench: {} copies in one go", arguments.many);
        rig.block_on(rig.rest(parent.sandbox()));
        let (pause, builds) = rig.block_on(fork(&rig, parent.sandbox(), arguments.many));
        rows.extend([
            Row::of("all pauses of the parent, many in one go", "us", [micros(pause)]),
            Row::of("all copies' work, many in one go", "us", [builds.iter().sum()]),
        ]);
    }
    rig.block_on(parent.finish()).expect("it can be removed");
    let title =
        format!("fork: {} runs, then {} copies in one go, guest of 256 MiB", arguments.all.runs, arguments.many);
    table::report(&title, &rows, arguments.all.json);
}

/// The parent's pause, and for each copy the microseconds from its process's beginning to its first instruction.
async fn fork(rig: &Rig, parent: &Sandbox, count: u32) -> (Duration, Vec<f64>) {
    let forked = parent.fork(count).await.unwrap_or_else(|error| panic!("fork: {error}"));
    let mut builds = Vec::with_capacity(forked.copies.len());
    for copy in forked.copies {
        let timeline = copy.timeline().await.expect("its VMM answers");
        let first_run = timeline.first_run.expect("it runs");
        builds.push((first_run - timeline.process_start) as f64 / 1e3);
        rig.manager.remove(copy.id().as_str(), true).await.expect("it can be removed");
    }
    (forked.pauses.iter().sum(), builds)
}
