//! `man-pages`: generates the manual pages from the command definitions. A package contains them.

use crate::failure::Failure;
use clap::Args;
use clap_mangen::generate_to;
use std::{fs, path::PathBuf};

/// Write the manual page of each command into a directory
#[derive(Debug, Args)]
pub(crate) struct ManPages {
    /// Directory, which is created unless it exists
    directory: PathBuf,
}

impl ManPages {
    pub(crate) fn run(self, command_line: clap::Command) -> Result<u8, Failure> {
        let written = fs::create_dir_all(&self.directory).and_then(|()| generate_to(command_line, &self.directory));
        written.map_err(|error| Failure::new(format!("cannot write to {}: {error}", self.directory.display())))?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_and_internal_ones_have_none() {
        let directory = tempfile::tempdir().unwrap();
        ManPages { directory: directory.path().join("man1") }.run(crate::command()).unwrap();
        let page = |name: &str| fs::read_to_string(directory.path().join("man1").join(name));
        for (name, words) in
            [("sandboxvm.1", "microVMs"), ("sandboxvm-run.1", "\\-\\-workspace"), ("sandboxvm-image-pull.1", "image")]
        {
            assert!(page(name).unwrap().contains(words), "{name}");
        }
        assert!(page("sandboxvm-supervise.1").is_err());
    }
}
