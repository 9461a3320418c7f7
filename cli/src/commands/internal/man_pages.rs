//! `man-pages`: generates the manual pages from the command definitions. A package contains them.

use crate::failure::Failure;
use clap::Args;
use clap_mangen::Man;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Write the manual page of each command into a directory
#[derive(Debug, Args)]
pub(crate) struct ManPages {
    /// Directory, which is created unless it exists
    directory: PathBuf,
}

impl ManPages {
    pub(crate) fn run(self, command_line: clap::Command) -> Result<u8, Failure> {
        let written = fs::create_dir_all(&self.directory).and_then(|()| {
            let mut root = command_line.disable_help_subcommand(true);
            root.build();
            pages(&self.directory, &root)
        });
        written.map_err(|error| Failure::new(format!("cannot write to {}: {error}", self.directory.display())))?;
        Ok(0)
    }
}

/// Writes the page of a command, and those of the commands below it.
fn pages(directory: &Path, command: &clap::Command) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let source = format!("sandboxvm {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).title(&name).source(source).generate_to(directory)?;
    command.get_subcommands().filter(|below| !below.is_hide_set()).try_for_each(|below| pages(directory, below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_and_internal_ones_have_none() {
        let directory = tempfile::tempdir().unwrap();
        ManPages { directory: directory.path().join("man1") }.run(crate::command()).unwrap();
        let page = |name: &str| fs::read_to_string(directory.path().join("man1").join(name));
        for (name, words) in [
            ("sandboxvm.1", "microVMs"),
            ("sandboxvm-run.1", "\\-\\-workspace"),
            ("sandboxvm-image-pull.1", ".TH sandboxvm-image-pull 1"),
        ] {
            assert!(page(name).unwrap().contains(words), "{name}");
        }
        assert!(page("sandboxvm-supervise.1").is_err());
    }
}
