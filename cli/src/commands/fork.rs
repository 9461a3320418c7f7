//! `fork`: running copies of a running sandbox.

use crate::{environment, failure::Failure, limit_options, progress, runtime, signals::Signals, stdio};
use clap::Args;

/// Make running copies of a running sandbox, which goes on, and print their IDs
#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Number of copies
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    count: u32,
}

impl Fork {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = environment::manager()?.find(&self.sandbox)?;
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let forked = tokio::select! {
                forked = progress::during("forking", sandbox.fork(self.count)) => forked?,
                _ = signals.next() => return Ok(signals.exit_code()),
            };
            for copy in &forked.copies {
                limit_options::warn(copy, &[]);
            }
            stdio::print(&forked.copies.iter().map(|copy| format!("{}\n", copy.id())).collect::<String>())?;
            Ok(0)
        })
    }
}
