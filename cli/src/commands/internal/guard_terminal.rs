//! `guard-terminal`: restores a terminal. Internal; started by commands that set a terminal to raw mode.

use crate::{failure::Failure, process_io::terminal::guardian};
use clap::Args;

/// Restore the terminal on stdin when stdout is closed
#[derive(Debug, Args)]
pub(crate) struct GuardTerminal {}

impl GuardTerminal {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        guardian::guard().map(|()| 0)
    }
}
