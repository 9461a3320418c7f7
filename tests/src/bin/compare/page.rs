//! The report as text: a table for a terminal, and a Markdown page. Each cell has a number, which
//! leads to a footnote with what was run and seen.

use crate::report::{Report, Row};
use sandboxvm_manager::printable;
use std::fmt::Write;

const LEGEND: &str = "contained: the attack failed, or affected only a private machine or tree that is thrown away. \
     partly: a part of the attack worked. EXPOSED: the attack affected the host. not run: it cannot be tried on this \
     machine; the footnote has the reason.";

/// Returns the report for a terminal.
pub fn terminal(report: &Report) -> String {
    let mut page = String::new();
    let rows = (report.probe_rows(), report.measure_rows());
    let titles = rows.0.iter().chain(&rows.1).map(|row| row.title.chars().count());
    let first = titles.max().unwrap_or(0);
    let widths: Vec<usize> = (0..report.contenders.len()).map(|at| width(report, &rows, at)).collect();
    let _ = writeln!(page, "{}\n{}\n", report.date, report.machine.join("\n"));
    let _ = write!(page, "{:first$}", "");
    for (column, width) in report.contenders.iter().zip(&widths) {
        let _ = write!(page, "  {:width$}", column.name);
    }
    page.push('\n');
    let mut number = 0;
    for row in rows.0.iter().chain(&rows.1) {
        let _ = write!(page, "{:first$}", row.title);
        for (cell, width) in row.cells.iter().zip(&widths) {
            number += 1;
            let _ = write!(page, "  {:width$}", format!("{} [{number}]", cell.shown));
        }
        page.push('\n');
    }
    let _ = writeln!(page, "\n{LEGEND}\n");
    for column in &report.contenders {
        let _ = writeln!(page, "{}: {}", column.name, how(column));
    }
    page.push('\n');
    number = 0;
    for row in rows.0.iter().chain(&rows.1) {
        let _ = writeln!(
            page,
            "{}{}",
            row.title,
            if row.what.is_empty() { String::new() } else { format!(": {}", row.what) }
        );
        for (cell, column) in row.cells.iter().zip(&report.contenders) {
            number += 1;
            let _ = writeln!(page, "  [{number}] {}: {}", column.name, printable(&cell.note));
        }
    }
    page
}

fn how(column: &crate::report::Column) -> String {
    column.unavailable.as_ref().map_or_else(|| column.how.clone(), |reason| format!("could not run here: {reason}"))
}

fn width(report: &Report, rows: &(Vec<Row>, Vec<Row>), at: usize) -> usize {
    let cells = rows.0.iter().chain(&rows.1).map(|row| row.cells[at].shown.chars().count() + " [999]".len());
    cells.chain([report.contenders[at].name.len()]).max().unwrap_or(0)
}

/// Returns the page for docs/.
pub fn markdown(report: &Report) -> String {
    let mut page = String::from(
        "# Comparison\n\nThis page shows what a rogue agent can do from the inside of a sandbox, and what a sandbox \
         costs.\n`scripts/compare-isolation` wrote it: the program runs each attack with the default settings of each \
         tool.\nThe numbers lead to footnotes with what was run and seen.\n\n",
    );
    let _ = writeln!(page, "{}", escaped(&report.date));
    for line in &report.machine {
        let _ = writeln!(page, "* {}", escaped(line));
    }
    page.push_str("\n## What it could do\n\n");
    let (probes, measures) = (report.probe_rows(), report.measure_rows());
    let mut number = 0;
    table(&mut page, report, &probes, &mut number);
    let _ = writeln!(page, "\n{LEGEND}\n");
    if !measures.is_empty() {
        page.push_str("## What it costs\n\n");
        table(&mut page, report, &measures, &mut number);
        page.push('\n');
    }
    page.push_str("## Where the others are as good, or better\n\n");
    for line in report.fairness() {
        let _ = writeln!(page, "* {}", escaped(&line));
    }
    page.push_str("\n## What was run\n\n");
    for column in &report.contenders {
        let _ = writeln!(page, "* **{}**: {}", column.name, escaped(&how(column)));
    }
    page.push_str("\n## Footnotes\n");
    number = 0;
    for row in probes.iter().chain(&measures) {
        let _ = writeln!(page, "\n### {}\n", row.title);
        if !row.what.is_empty() {
            let _ = writeln!(page, "The rogue {}.\n", escaped(row.what));
        }
        for (cell, column) in row.cells.iter().zip(&report.contenders) {
            number += 1;
            let _ = writeln!(page, "* <a id=\"n{number}\"></a>{number}. {}: {}", column.name, escaped(&cell.note));
        }
    }
    page
}

fn table(page: &mut String, report: &Report, rows: &[Row], number: &mut usize) {
    let names: Vec<&str> = report.contenders.iter().map(|column| column.name).collect();
    let _ = writeln!(page, "| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for row in rows {
        let _ = write!(page, "| {} |", row.title);
        for cell in &row.cells {
            *number += 1;
            let shown = if cell.bad { format!("**{}**", cell.shown) } else { cell.shown.clone() };
            let _ = write!(page, " {shown} [{number}](#n{number}) |");
        }
        page.push('\n');
    }
}

/// Returns the text with everything escaped that has a meaning in Markdown.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '<' => safe.push_str("&lt;"),
            '|' | '`' | '[' | ']' | '*' | '_' | '\\' => safe.extend(['\\', character]),
            _ => safe.push(character),
        }
    }
    safe
}
