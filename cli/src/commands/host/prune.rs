//! `prune`: removes sandboxes that are not running, and files that killed processes left behind.

use crate::{environment, failure::Failure, output::json, stdio};
use clap::Args;

/// Remove all sandboxes that are not running, and clean up leftovers
#[derive(Debug, Args)]
#[command(
    after_help = "Also removes files that killed processes left behind, and audit logs of sandboxes that were removed \
                        more than 30 days ago. Keeps sandboxes that are paused to disk, and those with stored changes of a \
                        workspace, which `discard` removes. Keeps images, snapshots and volumes, which `image prune`, \
                        `snapshot rm` and `volume prune` remove."
)]
pub(crate) struct Prune {
    /// Only print which sandboxes would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Prune {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let swept = environment::manager()?.prune(self.dry_run)?;
        let text = if self.json {
            json::pretty(&swept)?
        } else {
            swept.sandboxes.iter().map(|id| format!("{id}\n")).collect()
        };
        stdio::print(&text)?;
        if swept.failures.is_empty() {
            return Ok(0);
        }
        let reasons: Vec<String> =
            swept.failures.iter().map(|failure| format!("cannot remove {}: {}", failure.id, failure.reason)).collect();
        Err(Failure::new(reasons.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use crate::output::json::{self, tests::assert_golden};
    use sandboxvm_manager::{SweepFailure, Swept};

    #[test]
    fn json_is_pinned() {
        let ids = ["aaaaaaaa", "bbbbbbbb"].map(|id| id.to_owned().try_into().unwrap());
        let failures = vec![SweepFailure {
            id: "cccccccc".to_owned().try_into().unwrap(),
            reason: "cannot remove sandboxes/cccccccc: Permission denied".to_owned(),
        }];
        let swept = Swept { sandboxes: ids.into(), remains: 3, failures };
        assert_golden("prune.json", &json::pretty(&swept).unwrap());
    }
}
