//! `sandboxvm`: the command line program.
//!
//! ```text
//! main ── parses ──> commands/<one per subcommand> ──> manager (library)
//!                        │ run, exec, attach, logs: process_io (streams, signals, terminal), stdio; all others: output
//!                        └ environment (the only reader of SANDBOXVM_* and of $HOME), options (flags shared by several)
//! ```
//! Only the output of a guest, or what a command is asked to print, is written to stdout. Messages of this program are written
//! to stderr and start with `sandboxvm:`. Exit codes: that of the command; 128 + N if signal N killed it; 124 if it timed out;
//! 125 if this program failed; 126 if the command was not executable and 127 if it was not found.

// `eprintln!` panics if stderr is on a full disk or closed; see `stdio`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod background;
mod command_list;
mod commands;
mod environment;
mod failure;
mod host_needs;
mod images;
mod options;
mod output;
mod process_io;
mod runtime;
mod self_test;
mod stdio;
mod umask;
mod version;
mod wall;
mod workspace;

use clap::{CommandFactory, FromArgMatches, Parser, error::ErrorKind};
use failure::Failure;
use std::process::ExitCode;

/// Run commands in microVMs: hardware-virtualised Linux machines that start as fast as containers
#[derive(Debug, Parser)]
#[command(name = "sandboxvm", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

/// Returns the command line as it is described.
fn command() -> clap::Command {
    command_list::in_groups(Cli::command())
}

/// Parses the command line. Only a help text or an error needs the description of every command, so it is made for
/// these alone, by parsing again.
fn parse() -> Result<Cli, clap::Error> {
    let parsed = |command: clap::Command| command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    parsed(Cli::command()).or_else(|_| parsed(command()))
}

fn main() -> ExitCode {
    umask::take_on_ours();
    let outcome = match parse() {
        Ok(cli) => cli.command.run(command),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp => stdio::print(&error.render().to_string()).map(|()| 0),
            ErrorKind::DisplayVersion => stdio::print(&version::text()).map(|()| 0),
            _ => Err(Failure::usage(&error)),
        },
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.code())
        }
    }
}
