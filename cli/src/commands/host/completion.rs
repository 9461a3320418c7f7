//! `completion`: prints a shell completion script.

use crate::{failure::Failure, stdio};
use clap::Args;
use clap_complete::{Shell, generate};

/// Print a shell completion script
#[derive(Debug, Args)]
#[command(after_help = "For bash, run: source <(sandboxvm completion bash)")]
pub(crate) struct Completion {
    /// Shell to print the script for
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(self, mut command_line: clap::Command) -> Result<u8, Failure> {
        let mut script = Vec::new();
        generate(self.shell, &mut command_line, "sandboxvm", &mut script);
        stdio::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
