//! `guard-terminal`: what commands that make a terminal raw start to have it put back if they are killed. Not for people.

use crate::{failure::Failure, terminal::guardian};
use clap::Args;

/// Restore the terminal on stdin when stdout is closed
#[derive(Debug, Args)]
pub(crate) struct GuardTerminal {}

impl GuardTerminal {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        guardian::guard().map(|()| 0)
    }
}
