//! `image`: the container images of the home.

mod inspect;
mod load;
mod login;
mod ls;
mod prune;
mod pull;
mod push;
mod rm;
mod save;
mod tag;

use crate::failure::Failure;
use clap::{Args, Subcommand};

/// Pull, push, list, load, save and remove images
#[derive(Debug, Args)]
pub(crate) struct Image {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Pull(pull::Pull),
    Push(push::Push),
    Ls(ls::Ls),
    Inspect(inspect::Inspect),
    Tag(tag::Tag),
    Rm(rm::Rm),
    Prune(prune::Prune),
    Load(load::Load),
    Save(save::Save),
    Login(login::Login),
    Logout(login::Logout),
}

impl Image {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        match self.action {
            Action::Pull(command) => command.run(),
            Action::Push(command) => command.run(),
            Action::Ls(command) => command.run(),
            Action::Inspect(command) => command.run(),
            Action::Tag(command) => command.run(),
            Action::Rm(command) => command.run(),
            Action::Prune(command) => command.run(),
            Action::Load(command) => command.run(),
            Action::Save(command) => command.run(),
            Action::Login(command) => command.run(),
            Action::Logout(command) => command.run(),
        }
    }
}
