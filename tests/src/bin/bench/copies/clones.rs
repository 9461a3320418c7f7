//! `bench clones`: many sandboxes of one snapshot run at the same time, each after one command.
//! Measures their cost.

use crate::{
    rig::Rig,
    table::{self, Row},
};
use sandboxvm_tests::{host::memory, library::run as exec};
use std::fs;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Number of clones
    #[arg(short = 'n', long = "clones", default_value_t = 300, value_parser = clap::value_parser!(u16).range(2..))]
    clones: u16,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) {
    let rig = Rig::new(256);
    let mut private = Vec::new();
    let mut guests = Vec::new();
    let mut used = Vec::new();
    rig.block_on(async {
        let mut all = Vec::new();
        for run in 1..=arguments.clones {
            let started = rig.create().await;
            exec(started.sandbox(), &["true"]).await;
            let pid = started.sandbox().vmm_status().ok().flatten().expect("the VMM has written its status").pid;
            let memory = memory::of_vmm(pid, 256);
            private.push(memory.overhead_private_kib as f64);
            guests.push(memory.guest_private_kib as f64);
            all.push(started);
            used.push((f64::from(run), used_kib()));
            if run % 10 == 0 {
                eprintln!("bench: {run} clones alive");
            }
        }
        // All clones still respond.
        for started in &all {
            started.sandbox().stats().await.expect("a clone runs");
        }
        for started in all {
            started.finish().await.expect("the sandbox can be removed");
        }
    });
    let slope = slope(&used[1..]);
    let rows = [
        Row::of("private memory of a VMM beside its guest's", "KiB", private),
        Row::of("private memory of a guest", "KiB", guests),
        Row::of("host memory for one more clone", "KiB", [slope]),
        Row::of("projected for 1000 clones", "MiB", [slope * 1000.0 / 1024.0]),
    ];
    table::report(&format!("clones: {} at the same time, guest of 256 MiB", arguments.clones), &rows, arguments.json);
}

/// Returns the memory of the host that is in use and cannot be reclaimed: all except the available
/// memory (proc_meminfo(5)).
fn used_kib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let of = |key: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(key)).expect("/proc/meminfo has the line");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number of KiB")
    };
    of("MemTotal:") - of("MemAvailable:")
}

/// Returns the slope of the least squares line.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let over: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let under: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    over / under
}
