//! `completion`: a script that completes our commands in a shell.

use crate::{Cli, failure::Failure, stdio};
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "For bash: source <(sandboxvm completion bash)")]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "sandboxvm", &mut script);
        stdio::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
