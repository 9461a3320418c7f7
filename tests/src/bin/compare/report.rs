//! All results of a run as data: the output of `--json`, and the source of the pages.

use crate::{
    measures::Measured,
    probes::{ALL, Judged, Probe, Verdict},
};
use serde::Serialize;
use std::{collections::BTreeMap, fs, process::Command};

/// The results of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Start of the run, UTC.
    pub date: String,
    /// Description of this machine, by lines.
    pub machine: Vec<String>,
    /// Contenders in the order of the columns.
    pub contenders: Vec<Column>,
}

/// The results of one contender.
#[derive(Debug, Serialize)]
pub struct Column {
    /// Name of the contender.
    pub name: &'static str,
    /// Its version and command.
    pub how: String,
    /// Why it could not run on this host.
    pub unavailable: Option<String>,
    /// Verdicts by probe.
    pub probes: BTreeMap<&'static str, Judged>,
    /// Measures in the order of the rows.
    pub measures: Vec<Measured>,
}

/// Returns the date and a description of this machine.
pub fn here() -> (String, Vec<String>) {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once([':', '=']).map_or("", |(_, value)| value).trim().trim_matches('"').to_owned()
    };
    let pvm = fs::exists("/sys/module/kvm_pvm").unwrap_or(false);
    let mode = if pvm { "kvm_pvm: no VMX or SVM, guest kernels are interpreted" } else { "hardware virtualisation" };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let machine = vec![
        format!("{}, {} processors", field("/proc/cpuinfo", "model name"), said("nproc", &[])),
        format!("memory {}", field("/proc/meminfo", "MemTotal")),
        format!("{}, Linux {}", field("/etc/os-release", "PRETTY_NAME"), said("uname", &["-r"])),
        format!("KVM: {mode}"),
        format!("load when it began: {}", load.split(' ').take(3).collect::<Vec<_>>().join(" ")),
    ];
    (said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]), machine)
}

/// A cell of the table, with its footnote.
#[derive(Debug)]
pub struct Cell {
    /// Text in the table.
    pub shown: String,
    /// Whether the cell is bad news.
    pub bad: bool,
    /// Footnote.
    pub note: String,
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// Title of the row.
    pub title: String,
    /// What was run. Empty for measures, whose cells each state it.
    pub what: &'static str,
    /// Cells in the order of the columns.
    pub cells: Vec<Cell>,
}

impl Report {
    /// Returns the rows of all probes that were run in any contender.
    pub fn probe_rows(&self) -> Vec<Row> {
        let asked = |probe: &&Probe| self.contenders.iter().any(|column| column.probes.contains_key(probe.id));
        ALL.iter().filter(asked).map(|probe| self.probe_row(probe)).collect()
    }

    fn probe_row(&self, probe: &Probe) -> Row {
        let cell = |column: &Column| match column.probes.get(probe.id) {
            Some(judged) => Cell {
                shown: match &judged.figure {
                    Some(figure) => format!("{} ({figure})", word(judged.verdict)),
                    None => word(judged.verdict).to_owned(),
                },
                bad: judged.verdict == Verdict::Exposed,
                note: judged.seen.clone(),
            },
            None => missing(column),
        };
        Row { title: probe.title.to_owned(), what: probe.what, cells: self.contenders.iter().map(cell).collect() }
    }

    /// Returns the rows of the measures.
    pub fn measure_rows(&self) -> Vec<Row> {
        let Some(model) = self.contenders.iter().find(|column| !column.measures.is_empty()) else { return Vec::new() };
        let row = |at: usize, first: &Measured| Row {
            title: format!("{}, {}", first.title, first.unit),
            what: "",
            cells: self.contenders.iter().map(|column| measure_cell(column, at)).collect(),
        };
        model.measures.iter().enumerate().map(|(at, first)| row(at, first)).collect()
    }

    /// Returns sentences that say where the others are as good as the last column or better.
    pub fn fairness(&self) -> Vec<String> {
        let Some((ours, others)) = self.contenders.split_last() else { return Vec::new() };
        let mut lines = Vec::new();
        for other in others.iter().filter(|other| other.unavailable.is_none()) {
            let equal: Vec<&str> = ALL
                .iter()
                .filter(|probe| {
                    let good =
                        |column: &Column| column.probes.get(probe.id).is_some_and(|j| j.verdict == Verdict::Contained);
                    good(other) && good(ours)
                })
                .map(|probe| probe.title)
                .collect();
            let better: Vec<String> = ours
                .measures
                .iter()
                .zip(&other.measures)
                .filter_map(|(our, their)| {
                    let (our_value, their_value) = (our.value?, their.value?);
                    (their_value <= our_value).then(|| {
                        format!("{}: {} against {} {}", our.title, figure(their_value), figure(our_value), our.unit)
                    })
                })
                .collect();
            if !equal.is_empty() {
                lines.push(format!("{} contains as well: {}.", other.name, equal.join("; ")));
            }
            if !better.is_empty() {
                lines.push(format!("{} costs no more, or less: {}.", other.name, better.join("; ")));
            }
        }
        lines
    }
}

fn missing(column: &Column) -> Cell {
    let note = column.unavailable.clone().unwrap_or_else(|| "was not asked".to_owned());
    Cell { shown: "not run".to_owned(), bad: false, note }
}

fn measure_cell(column: &Column, at: usize) -> Cell {
    match column.measures.get(at) {
        Some(measured) => {
            let shown = measured.value.map_or("not run".to_owned(), figure);
            Cell { shown, bad: false, note: measured.how.clone() }
        }
        None => missing(column),
    }
}

/// Formats a number, with one decimal if it is small.
fn figure(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Contained => "contained",
        Verdict::Partly => "partly",
        Verdict::Exposed => "EXPOSED",
        Verdict::NotRun => "not run",
    }
}
