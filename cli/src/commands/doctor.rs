//! `doctor`: whether sandboxes can run on this machine, and what to do when not.

use crate::failure::Failure;
use clap::Args;

/// Check whether this machine can run sandboxes, and say what to fix
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        Err(Failure::new("not built yet"))
    }
}
