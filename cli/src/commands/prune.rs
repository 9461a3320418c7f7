//! `prune`: takes away what does not run, and what a killed process left.

use crate::{environment, failure::Failure, stdio};
use clap::Args;

/// Remove all sandboxes that do not run, and whatever killed processes left behind
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Only say which sandboxes would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let swept = environment::manager()?.prune(self.dry_run)?;
        let text = if self.json {
            format!("{}\n", serde_json::to_string_pretty(&swept)?)
        } else {
            swept.sandboxes.iter().map(|id| format!("{id}\n")).collect()
        };
        stdio::print(&text)?;
        Ok(0)
    }
}
