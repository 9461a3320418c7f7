//! `image prune`: deletes what no image needs.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions},
    output::size,
    stdio,
};
use clap::Args;

/// Delete layers that no image needs, and interrupted downloads
#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Also remove all images from which no sandbox or snapshot was created
    #[arg(short, long)]
    all: bool,
}

impl Prune {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let store = images::open(&RegistryOptions::default(), None)?.store;
        let mut text = String::new();
        if self.all {
            text.extend(store.remove_unused()?.iter().map(|tag| format!("{}\n", tag.reference)));
        }
        let collected = store.prune()?;
        text.push_str(&format!("deleted {} files, {}\n", collected.files, size::of(collected.bytes)));
        stdio::print(&text)?;
        Ok(0)
    }
}
