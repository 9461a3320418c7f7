//! `cli-reference`: docs/cli.md, made from the commands themselves.

use crate::{failure::Failure, stdio};
use clap::Args;
use std::fmt::Write;

/// Print docs/cli.md
#[derive(Debug, Args)]
pub(crate) struct CliReference {}

impl CliReference {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        stdio::print(&reference())?;
        Ok(0)
    }
}

fn reference() -> String {
    let mut root = crate::command().term_width(100);
    root.build();
    let mut text = String::from(
        "# The command line\n\n\
         Made by `sandboxvm cli-reference`; do not edit.\n\n\
         Only a guest's output, or what a command is asked to print, goes to stdout. Messages of sandboxvm go to \
         stderr and start with `sandboxvm:`. Whatever fails on our side, bad flags included, exits with 125.\n\n\
         Environment: `SANDBOXVM_HOME` is the directory that holds the sandboxes (`/var/lib/sandboxvm` as root, else \
         `$XDG_DATA_HOME/sandboxvm`); `SANDBOXVM_BUNDLE` the directory with `sandboxvm-vmm`, `vmlinux`, `base.erofs` \
         and `agent.erofs` (else `../lib/sandboxvm` or `bundle` beside the program), each of which \
         `SANDBOXVM_VMM`, `SANDBOXVM_KERNEL`, `SANDBOXVM_IMAGE` and `SANDBOXVM_AGENT` replace.\n\n\
         What a host takes is refused beyond these, each of which 0 switches off: `SANDBOXVM_MAX_SANDBOXES` sandboxes in \
         one home (4096); `SANDBOXVM_OVERCOMMIT` times the host's memory for all that run together (4); and, above \
         `SANDBOXVM_MIN_FREE_MEMORY` (a twentieth of the host's, 256M to 2G) and `SANDBOXVM_MIN_FREE_DISK` (a twentieth \
         of the home's file system, 1G at most), as much memory and room as a new sandbox can take.\n",
    );
    section(&mut text, &mut root);
    text
}

/// A command's help, then that of the commands below it. Clap's own `help` is the same everywhere and left out.
fn section(text: &mut String, command: &mut clap::Command) {
    let name = command.get_bin_name().unwrap_or("sandboxvm").to_owned();
    let help = command.render_long_help().to_string();
    let help = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    // Writing to a String does not fail.
    let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.trim_end());
    for below in command.get_subcommands_mut().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        section(text, below);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_in_docs_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == super::reference(), "run `sandboxvm cli-reference >docs/cli.md`");
    }
}
