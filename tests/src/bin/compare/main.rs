//! Runs the same rogue agent in a chroot, containers, a full virtual machine and sandboxvm. Reports
//! what it could do and what each sandbox costs. `scripts/compare-isolation` installs and builds
//! what this needs, and runs it. The report is on stdout, everything else on stderr. Destructive
//! probes reach only copies and bait (`scene`), limit themselves (`rogue.py`), and are limited from
//! outside too (`guard`).

mod contenders;
mod execution;
mod guard;
mod interrogation;
mod measures;
mod page;
mod probes;
mod report;
mod scene;
#[cfg(test)]
mod tests;

use clap::Parser;
use contenders::Contender;
use guard::Guard;
use probes::Probe;
use report::{Column, Report};
use sandboxvm_manager::printable;
use sandboxvm_tests::artefacts::Artefacts;
use scene::Scene;
use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode};

/// The path on which programs are found, on the host and in sandboxes.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, Parser)]
#[command(
    name = "compare-isolation",
    about = "Compares what a rogue agent can do in sandboxvm and elsewhere, by trying"
)]
struct Arguments {
    /// Contenders to compare, of chroot, systemdnspawn, docker, bubblewrap, qemu, sandboxvm.
    /// Defaults to all
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Probes to run. Defaults to all
    #[arg(long, value_delimiter = ',')]
    probes: Vec<String>,
    /// Number of runs of `true` that are measured; 0 omits all measures. Defaults to 5
    #[arg(short = 'n', long = "runs", default_value_t = 5)]
    runs: u16,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Also write a Markdown page to this file
    #[arg(long, value_name = "PATH")]
    markdown: Option<PathBuf>,
}

fn main() -> ExitCode {
    execution::heed_signals();
    match compare(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {}", printable(&error));
            ExitCode::from(125)
        }
    }
}

fn compare(arguments: &Arguments) -> Result<(), String> {
    if !rustix::process::getuid().is_root() {
        return Err("must run as root: chroot, namespaces and the guards' control groups need it".to_owned());
    }
    let probes = interrogation::chosen(&arguments.probes)?;
    let mut contenders = contenders::all();
    let known: Vec<String> = contenders.iter().map(|each| interrogation::scene_name(each.name())).collect();
    if let Some(stranger) = arguments.only.iter().find(|name| !known.contains(name)) {
        return Err(format!("there is no contender {stranger:?}; there are: {}", known.join(", ")));
    }
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.contains(&interrogation::scene_name(name));
    contenders.retain(|each| wanted(each.name()));
    let (date, machine) = report::here();
    let mut scene = Scene::new(&Artefacts::find().part("base.erofs"))?;
    // One contender after the other. Each is removed before the next one starts.
    let columns = contenders.into_iter().map(|each| ask(each, &mut scene, &probes, arguments.runs)).collect();
    if execution::interrupted() {
        return Err("interrupted; everything was removed".to_owned());
    }
    let report = Report { date, machine, contenders: columns };
    if let Some(path) = &arguments.markdown {
        fs::write(path, page::markdown(&report))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("a report is JSON"));
    } else {
        print!("{}", page::terminal(&report));
    }
    Ok(())
}

fn ask(mut contender: Box<dyn Contender>, scene: &mut Scene, probes: &[&Probe], runs: u16) -> Column {
    let name = contender.name();
    let mut column =
        Column { name, how: String::new(), unavailable: None, probes: BTreeMap::new(), measures: Vec::new() };
    let guard = match Guard::new(&scene.token, &interrogation::scene_name(name)) {
        Ok(guard) => guard,
        Err(error) => {
            column.unavailable = Some(format!("no guard against the bombs: {error}"));
            return column;
        }
    };
    eprintln!("compare: {name}: preparing");
    if let Err(reason) = contender.prepare(scene, &guard) {
        eprintln!("compare: {name}: {}", printable(&reason));
        column.unavailable = Some(reason);
        return column;
    }
    column.how = contender.how();
    if runs > 0 {
        column.measures = measures::measure(contender.as_mut(), scene, runs);
    }
    column.probes = interrogation::interrogate(contender.as_mut(), scene, &guard, probes);
    // Processes that are left belong to a rogue. They end before the contender, which may wait for
    // its own.
    guard.clear();
    column
}
