//! `network`: shows and changes what a sandbox reaches, and what it used.

mod log;
mod set;
pub(crate) mod show;
mod suggest;

use crate::failure::Failure;
use clap::{Args, Subcommand};

/// Show or change what a sandbox reaches on the network
#[derive(Debug, Args)]
pub(crate) struct Network {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Show(show::Show),
    Set(Box<set::Set>),
    Log(log::Log),
    Suggest(suggest::Suggest),
}

impl Network {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self.action {
            Action::Show(command) => command.run(),
            Action::Set(command) => command.run(),
            Action::Log(command) => command.run(),
            Action::Suggest(command) => command.run(),
        }
    }
}
