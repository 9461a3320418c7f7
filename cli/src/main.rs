//! `sandboxvm`: what people type.
//!
//! ```text
//! main ── parses ──> commands/<one per subcommand> ──> manager (library)
//!                        │ run, exec, attach, logs: process_io, terminal, signals, stdio
//!                        └ environment (the only reader of SANDBOXVM_* and of $HOME), options (flags shared by several, read by values)
//! ```
//! Only a guest's output, or what a command is asked to print, goes to stdout. Everything of ours goes to stderr and
//! starts with `sandboxvm:`. Exit codes: the command's own; 128 + N when signal N killed it; 124 when its time ran out;
//! 125 when we failed; 126 and 127 when it was not executable or not found.

mod background;
mod command_list;
mod commands;
mod detach_keys;
mod environment;
mod failure;
mod hint;
mod json;
mod limit_options;
mod options;
mod process_io;
mod progress;
mod runtime;
mod signals;
mod stdio;
mod supervision;
mod table;
mod terminal;
mod umask;
mod values;
mod version;
mod wall;

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

/// Returns the command line as it is parsed and described.
fn command() -> clap::Command {
    command_list::in_groups(Cli::command())
}

fn main() -> ExitCode {
    umask::take_on_ours();
    let parsed = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let outcome = match parsed {
        Ok(cli) => cli.command.run(),
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
