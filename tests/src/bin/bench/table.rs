//! Percentiles and maximum of some runs, as aligned text or JSON.

use serde::Serialize;
use std::borrow::Cow;

/// One quantity, measured in several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the quantity.
    pub name: Cow<'static, str>,
    /// Unit of all numbers.
    pub unit: &'static str,
    /// 10th percentile: what other work on the machine delayed least.
    pub p10: f64,
    /// Median, which is the lower of the middle two values.
    pub p50: f64,
    /// 99th percentile. With fewer than 100 runs it is the maximum.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

impl Row {
    /// Returns the row of at least one value.
    pub fn of(name: impl Into<Cow<'static, str>>, unit: &'static str, values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let max = *values.last().expect("a benchmark has at least one run");
        let p99 = values[(values.len() * 99).div_ceil(100) - 1];
        let (p10, p50) = (values[(values.len() - 1) / 10], values[(values.len() - 1) / 2]);
        Self { name: name.into(), unit, p10, p50, p99, max }
    }
}

/// Prints rows as a table below a title.
pub fn print(title: &str, rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    println!("{title}\n{:width$}  {:>12}  {:>12}  {:>12}  {:>12}  unit", "", "p10", "p50", "p99", "max");
    for row in rows {
        let (p10, p50) = (number(row.p10), number(row.p50));
        let (p99, max) = (number(row.p99), number(row.max));
        println!("{:width$}  {p10:>12}  {p50:>12}  {p99:>12}  {max:>12}  {}", row.name, row.unit);
    }
}

/// Formats a number, with three decimals unless it is an integer.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// Prints the results of one benchmark as a table or as JSON.
pub fn report(title: &str, rows: &[Row], json: bool) {
    if json {
        let report = serde_json::json!({ "title": title, "results": rows });
        println!("{}", serde_json::to_string_pretty(&report).expect("a report is JSON"));
    } else {
        print(title, rows);
    }
}
