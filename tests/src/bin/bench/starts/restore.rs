//! `bench restore`: the steps from the request for a sandbox to its first guest instruction, and
//! the cost of its first command in the guest.

use crate::{
    rig::{Rig, Runs, instructions, micros, monotonic_ns},
    table::{self, Row},
};
use sandboxvm_tests::{host::memory, library};
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    all: Runs,
    /// Number of sandboxes in which a command is run
    #[arg(long, default_value_t = 5)]
    execs: u16,
    /// Guest memory in MiB
    #[arg(short, long, default_value_t = 256)]
    memory: u64,
}

/// Durations of one restore in microseconds.
struct Restore {
    staged: f64,
    spawned: f64,
    confined: f64,
    built: f64,
    first_run: f64,
    from_process: f64,
    from_launch: f64,
    total: f64,
}

/// Cost of the first command.
struct FirstExec {
    answered: f64,
    executed: f64,
    again: f64,
    seconds: f64,
    guest_kib: f64,
    private_kib: f64,
}

pub fn run(arguments: &Arguments) {
    let rig = Rig::new(arguments.memory);
    eprintln!("bench: making the ready snapshot");
    rig.block_on(async { rig.create().await.finish().await.expect("the sandbox can be removed") });
    let mut restores = Vec::new();
    let mut execs = Vec::new();
    for run in 1..=arguments.all.runs {
        rig.block_on(async {
            let asked = Instant::now();
            let mut started = rig.manager.start(&rig.bundle, &rig.spec).await.expect("a sandbox");
            started.ready().await.expect("the machine runs");
            restores.push(restore(asked, &started).await);
            if run <= arguments.execs {
                eprintln!("bench: first command {run} of {}", arguments.execs);
                execs.push(first_exec(&mut started, arguments.memory).await);
            }
            started.finish().await.expect("the sandbox can be removed");
        });
    }
    let title =
        format!("restore: {} runs, {} first commands, guest of {} MiB", restores.len(), execs.len(), arguments.memory);
    table::report(&title, &rows(&restores, &execs), arguments.all.json);
}

async fn restore(asked: Instant, started: &sandboxvm_manager::StartedSandbox) -> Restore {
    let timeline = started.sandbox().timeline().await.expect("the VMM responds");
    let spawned_at = started.spawned_at().expect("the VMM was started");
    let spawn = monotonic_ns(spawned_at);
    let us = |from: f64, to: u64| (to as f64 - from) / 1e3;
    let built = timeline.built.expect("the machine runs");
    let first_run = timeline.first_run.expect("the machine runs");
    Restore {
        staged: micros(spawned_at - asked),
        spawned: us(spawn, timeline.process_start),
        confined: us(timeline.process_start as f64, timeline.confined),
        built: us(timeline.launched as f64, built),
        first_run: us(built as f64, first_run),
        from_process: us(spawn, first_run),
        from_launch: us(timeline.launched as f64, first_run),
        total: us(monotonic_ns(asked), first_run),
    }
}

async fn first_exec(started: &mut sandboxvm_manager::StartedSandbox, memory_mib: u64) -> FirstExec {
    let begun = Instant::now();
    // Waits until the restored kernel has done its own work.
    tokio::time::sleep(Duration::from_millis(50)).await;
    started.settled().await.expect("the guest sets its identity");
    let sandbox = started.sandbox();
    let stats = async || instructions(&sandbox.stats().await.expect("the VMM responds"));
    let answered = stats().await;
    library::run(sandbox, &["true"]).await;
    let executed = stats().await;
    let seconds = begun.elapsed().as_secs_f64();
    let pid = sandbox.vmm_status().ok().flatten().expect("the VMM has written its status").pid;
    let memory = memory::of_vmm(pid, memory_mib);
    library::run(sandbox, &["true"]).await;
    FirstExec {
        answered,
        executed: executed - answered,
        again: stats().await - executed,
        seconds,
        guest_kib: memory.guest_private_kib as f64,
        private_kib: memory.overhead_private_kib as f64,
    }
}

fn rows(restores: &[Restore], execs: &[FirstExec]) -> Vec<Row> {
    let of = |name, value: fn(&Restore) -> f64| Row::of(name, "us", restores.iter().map(value));
    let mut rows = vec![
        of("asked for -> first guest instruction", |r| r.total),
        of("  the manager: files, directory, links", |r| r.staged),
        of("  VMM spawned -> first guest instruction", |r| r.from_process),
        of("    process start", |r| r.spawned),
        of("    leaving the host", |r| r.confined),
        of("    machine known -> first guest instruction", |r| r.from_launch),
        of("      machine built", |r| r.built),
        of("      vCPU started", |r| r.first_run),
    ];
    if !execs.is_empty() {
        let of = |name, unit, value: fn(&FirstExec) -> f64| Row::of(name, unit, execs.iter().map(value));
        rows.extend([
            of("guest-kernel instructions, resume to identity set", "insns", |e| e.answered),
            of("guest-kernel instructions, first `true`", "insns", |e| e.executed),
            of("guest-kernel instructions, second `true`", "insns", |e| e.again),
            of("restored -> first `true` has ended", "s", |e| e.seconds),
            of("private memory of the VMM after it", "KiB", |e| e.private_kib),
            of("private memory of the guest after it", "KiB", |e| e.guest_kib),
        ]);
    }
    rows
}
