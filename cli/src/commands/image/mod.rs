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

/// Returns a size with one decimal and a unit.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB"];
    let exponent = (bytes.max(1).ilog2() / 10).clamp(1, 3);
    // Sizes of images lie far below 2^52.
    let number = bytes as f64 / f64::from(1_u32 << (10 * exponent));
    format!("{number:.1} {}", units[exponent as usize - 1])
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_a_unit() {
        let sizes = [0, 512, 1 << 20, (1 << 30) - 1, 3 << 29, 5 << 40].map(size);
        assert_eq!(sizes, ["0.0 KiB", "0.5 KiB", "1.0 MiB", "1024.0 MiB", "1.5 GiB", "5120.0 GiB"]);
    }
}
