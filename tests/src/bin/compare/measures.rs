//! The cost of a sandbox: time from start to exit of `true`, memory of an idle one and of the
//! tenth, time to restore a clean state, disk space. Measured in the same run as the probes,
//! without their guard.

use crate::{
    contenders::{Contender, Idle, Job},
    execution,
    scene::Scene,
};
use sandboxvm_tests::host::processes;
use serde::Serialize;
use std::{fs, time::Duration};

/// A figure, or the reason why there is none.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Name in JSON.
    pub id: &'static str,
    /// Title of the row.
    pub title: &'static str,
    /// Value in the unit of the row.
    pub value: Option<f64>,
    /// Unit of the value.
    pub unit: &'static str,
    /// How it was measured, or why it was not.
    pub how: String,
}

/// The rows of the table.
pub const ROWS: [(&str, &str, &str); 6] = [
    ("true", "Start to exit of `true`", "ms"),
    ("idle", "Memory of one idle sandbox", "MiB"),
    ("tenth", "Memory of the tenth", "MiB"),
    ("clean", "Back to a clean state", "ms"),
    ("disk-once", "Disk, once", "MiB"),
    ("disk-each", "Disk, each sandbox", "MiB"),
];

/// Number of idle sandboxes that are started.
const IDLE: usize = 10;

/// Measures a contender that was prepared.
pub fn measure(contender: &mut dyn Contender, scene: &Scene, runs: u16) -> Vec<Measured> {
    let mut all: Vec<Measured> = Vec::new();
    let mut add = |id: &str, result: Result<(f64, String), String>| {
        let (id, title, unit) = *ROWS.iter().find(|row| row.0 == id).expect("a row of the table");
        let (value, how) = result.map_or_else(|reason| (None, reason), |(value, how)| (Some(value), how));
        all.push(Measured { id, title, value, unit, how });
    };
    eprintln!("compare: {}: measuring", contender.name());
    add("true", start_to_exit(contender, runs));
    let (one, tenth) = idle_memory(contender);
    add("idle", one);
    add("tenth", tenth);
    add("clean", contender.clean(scene).map(|(elapsed, how)| (millis(elapsed), how.to_owned())));
    let disk = contender.disk();
    let shared = "what all sandboxes share: images, kernel and monitor, if they are separate files";
    add("disk-once", disk.clone().map(|disk| (mib(disk.once), shared.to_owned())));
    add("disk-each", disk.map(|disk| (mib(disk.each), "what one more takes when it has just started".to_owned())));
    all
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn start_to_exit(contender: &mut dyn Contender, runs: u16) -> Result<(f64, String), String> {
    let mut times = Vec::new();
    for _ in 0..runs {
        let command = contender.command(Job::True, "")?;
        times.push(millis(execution::run(command, "", crate::contenders::patience())?.success()?.elapsed));
    }
    times.sort_by(f64::total_cmp);
    let median = times[(times.len() - 1) / 2];
    let most = times[times.len() - 1];
    Ok((median, format!("median of {runs} runs; the slowest took {most:.0} ms")))
}

type Figure = Result<(f64, String), String>;

/// Returns the proportional memory of the first sandbox, and the difference between ten and nine.
fn idle_memory(contender: &mut dyn Contender) -> (Figure, Figure) {
    let mut sandboxes: Vec<Idle> = Vec::new();
    let mut totals = Vec::new();
    let mut failure = None;
    while sandboxes.len() < IDLE && failure.is_none() {
        match contender.idle() {
            Ok(idle) => {
                sandboxes.push(idle);
                totals.push(sandboxes.iter().map(proportional_kib).sum::<u64>());
            }
            Err(error) => failure = Some(error),
        }
    }
    for idle in sandboxes {
        contender.end(idle);
    }
    let how = "proportional set size of all its processes on the host";
    let figure = |kib: u64| Ok((kib as f64 / 1024.0, how.to_owned()));
    let missing = || failure.clone().unwrap_or_else(|| "none was started".to_owned());
    let one = totals.first().map_or_else(|| Err(missing()), |kib| figure(*kib));
    let tenth = match totals[..] {
        [.., nine, ten] if totals.len() == IDLE => figure(ten.saturating_sub(nine)),
        _ => Err(missing()),
    };
    (one, tenth)
}

fn proportional_kib(idle: &Idle) -> u64 {
    let mut waiting = idle.roots.clone();
    let mut total = 0;
    while let Some(pid) = waiting.pop() {
        total += of_process(pid).unwrap_or(0);
        waiting.extend(processes::children(pid));
    }
    total
}

fn of_process(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
