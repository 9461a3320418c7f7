//! Median and maximum of a few runs, as aligned text.

use serde::Serialize;

/// One measured quantity over several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// Unit of both numbers.
    pub unit: &'static str,
    /// Median; the lower of the middle two.
    pub p50: f64,
    /// Largest.
    pub max: f64,
}

impl Row {
    /// Of at least one value.
    pub fn of(name: &'static str, unit: &'static str, values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let max = *values.last().expect("a benchmark has at least one run");
        Self { name, unit, p50: values[(values.len() - 1) / 2], max }
    }
}

/// Prints rows under a title.
pub fn print(title: &str, rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    println!("{title}\n{:width$}  {:>12}  {:>12}  unit", "", "p50", "max");
    for row in rows {
        println!("{:width$}  {:>12}  {:>12}  {}", row.name, number(row.p50), number(row.max), row.unit);
    }
}

/// Three significant places behind the point only where they matter.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
