//! `changes`: shows what a sandbox changed in its workspace.

use crate::{failure::Failure, runtime, stdio, workspace, workspace::show};
use clap::Args;
use sandboxvm_workspace::{LayerLimits, Review};
use std::io::{self, IsTerminal};

/// Show what a sandbox changed in its workspace
#[derive(Debug, Args)]
#[command(
    after_help = "Compares the files of the sandbox with those that it was given. Files that were written with their old content are \
                  not changes. On a terminal, control characters of names and contents are escaped."
)]
pub(crate) struct Changes {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Name or ID of another sandbox of the same workspace, such as a fork: show in what it differs from the first one
    other: Option<String>,
    /// Print how many lines of each file changed
    #[arg(long, help_heading = "Output", conflicts_with_all = ["patch", "json"])]
    stat: bool,
    /// Print a patch, which `git apply --binary` applies
    #[arg(long, help_heading = "Output", conflicts_with = "json")]
    patch: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Changes {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = workspace::find(&self.sandbox)?;
        let other = self.other.as_deref().map(workspace::find).transpose()?;
        let limits = LayerLimits::default();
        let review = runtime::block_on(async {
            let files = workspace::files(&sandbox).await?;
            Ok::<_, Failure>(match &other {
                Some(other) => Review::between(files, workspace::files(other).await?, &limits)?,
                None => Review::open(files, &limits)?,
            })
        })?;
        if self.patch {
            let left_out = show::patch(&review, io::stdout().lock(), io::stdout().is_terminal())?;
            if left_out > 0 {
                stdio::notice(format_args!(
                    "not in the patch: {left_out} of the changes, of directories or permissions"
                ));
            }
            return Ok(0);
        }
        if self.json {
            stdio::print(&show::json(&review)?)?;
            return Ok(0);
        }
        let text = if self.stat { show::stat(&review)? } else { show::list(review.changes()) };
        stdio::print(&text)?;
        if review.changes().files.is_empty() {
            stdio::notice("no changes");
        }
        show::note_branches(&review);
        show::note_left_out(review.changes());
        Ok(0)
    }
}
