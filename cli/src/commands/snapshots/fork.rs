//! `fork`: creates running copies of a running sandbox.

use crate::{
    environment,
    failure::Failure,
    options::{
        limits,
        supervision::{self, RuleOptions},
    },
    output::progress,
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{Forked, Inheritance, Secrets, SharesOfCopies};

/// Create running copies of a running sandbox and print their IDs
#[derive(Debug, Args)]
#[command(
    after_help = "The sandbox itself keeps running. The copies reach what it reaches on the network, and do not inherit \
                  its published ports, --ttl and --idle."
)]
pub(crate) struct Fork {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Number of copies (1-10000)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    count: u32,
    /// Give the copies the secrets and header rules of the sandbox. Without it, requests of a copy that need them fail
    #[arg(long, help_heading = "Network")]
    with_secrets: bool,
    /// What the copies get of the live shares of a sandbox that can write one: share lets them write the same files, ro
    /// lets them only read, copy gives each a copy of the files [default: refuse to fork such a sandbox]
    #[arg(long, value_name = "share|ro|copy", help_heading = "Files", value_parser = shares)]
    share_on_fork: Option<SharesOfCopies>,
    #[command(flatten)]
    rules: RuleOptions,
}

fn shares(given: &str) -> Result<SharesOfCopies, String> {
    match given {
        "share" => Ok(SharesOfCopies::Same),
        "ro" => Ok(SharesOfCopies::ReadOnly),
        "copy" => Ok(SharesOfCopies::Copied),
        _ => Err("expected share, ro or copy".to_owned()),
    }
}

impl Fork {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let secrets = if self.with_secrets { Secrets::Inherited } else { Secrets::Left };
            let copies = sandbox.fork_with(self.count, Inheritance { secrets, shares: self.share_on_fork });
            let forked = tokio::select! {
                forked = progress::during("forking", copies) => forked?,
                _ = signals.next() => return Ok(signals.exit_code()),
            };
            if let Err(failure) = self.keep_up_rules(&forked).await {
                for copy in &forked.copies {
                    environment::manager()?.remove(copy.id().as_str(), true).await?;
                }
                return Err(failure);
            }
            for copy in &forked.copies {
                limits::warn(copy, &[]);
            }
            stdio::print(&forked.copies.iter().map(|copy| format!("{}\n", copy.id())).collect::<String>())?;
            Ok(0)
        })
    }

    async fn keep_up_rules(&self, forked: &Forked) -> Result<(), Failure> {
        for copy in &forked.copies {
            self.rules.keep_up(copy, Vec::new()).await?;
        }
        Ok(())
    }
}
