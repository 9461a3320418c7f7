//! Median, 99th percentile and maximum of some runs, as aligned text or JSON.

use serde::Serialize;
use std::borrow::Cow;

/// One measured quantity over several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: Cow<'static, str>,
    /// Unit of both numbers.
    pub unit: &'static str,
    /// Median; the lower of the middle two.
    pub p50: f64,
    /// 99 of 100 are at most this; with fewer runs the largest.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Row {
    /// Of at least one value.
    pub fn of(name: impl Into<Cow<'static, str>>, unit: &'static str, values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let max = *values.last().expect("a benchmark has at least one run");
        let p99 = values[(values.len() * 99).div_ceil(100) - 1];
        Self { name: name.into(), unit, p50: values[(values.len() - 1) / 2], p99, max }
    }
}

/// Prints rows under a title.
pub fn print(title: &str, rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    println!("{title}\n{:width$}  {:>12}  {:>12}  {:>12}  unit", "", "p50", "p99", "max");
    for row in rows {
        let (p50, p99, max) = (number(row.p50), number(row.p99), number(row.max));
        println!("{:width$}  {p50:>12}  {p99:>12}  {max:>12}  {}", row.name, row.unit);
    }
}

/// Three significant places behind the point only where they matter.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// Results of one benchmark, for people or for machines.
pub fn report(title: &str, rows: &[Row], json: bool) {
    if json {
        let report = serde_json::json!({ "title": title, "results": rows });
        println!("{}", serde_json::to_string_pretty(&report).expect("a report is JSON"));
    } else {
        print(title, rows);
    }
}
