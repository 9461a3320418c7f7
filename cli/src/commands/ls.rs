//! `ls`: all sandboxes and what they do.

use crate::{environment, failure::Failure, stdio, table};
use clap::Args;
use sandboxvm_manager::{SandboxSummary, State};
use std::time::{Duration, SystemTime};

/// List sandboxes
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print IDs alone
    #[arg(short, long)]
    quiet: bool,
}

impl Ls {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        manager.sweep()?;
        let sandboxes = manager.list()?;
        let text = if self.json {
            format!("{}\n", serde_json::to_string_pretty(&sandboxes)?)
        } else if self.quiet {
            sandboxes.iter().map(|sandbox| format!("{}\n", sandbox.record.id)).collect()
        } else {
            let now = SystemTime::now();
            let heading = ["ID", "NAME", "STATE", "MEMORY", "CPUS", "CREATED"];
            table::render(heading, sandboxes.iter().map(|sandbox| row(sandbox, now)))
        };
        stdio::print(&text)?;
        Ok(0)
    }
}

fn row(sandbox: &SandboxSummary, now: SystemTime) -> [String; 6] {
    let record = &sandbox.record;
    let state = match &sandbox.state {
        State::Exited { reason } => format!("exited: {reason}"),
        state => state.word().to_owned(),
    };
    [
        record.id.to_string(),
        record.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        state,
        format!("{} MiB", record.memory_bytes.mib()),
        u32::from(record.vcpus).to_string(),
        age(now.duration_since(record.created_at).unwrap_or_default()),
    ]
}

/// The largest unit alone, as nobody needs the rest.
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let texts: Vec<String> = [0, 1, 119, 7200, 86_400 * 3].map(|s| age(Duration::from_secs(s))).into();
        assert_eq!(texts, ["0 seconds ago", "1 second ago", "1 minute ago", "2 hours ago", "3 days ago"]);
    }
}
