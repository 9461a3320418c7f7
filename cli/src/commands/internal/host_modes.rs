//! `host-modes`: generates the tables of docs/host-modes.md from the table that `doctor` uses.

use crate::{failure::Failure, host_needs, stdio};
use clap::Args;

/// Print the tables of docs/host-modes.md
#[derive(Debug, Args)]
pub(crate) struct HostModes {}

impl HostModes {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        stdio::print(&host_needs::tables())?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn docs_host_modes_md_has_the_tables_of_doctor() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/host-modes.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page.contains(&crate::host_needs::tables()),
            "replace the tables by the output of sandboxvm host-modes"
        );
    }
}
