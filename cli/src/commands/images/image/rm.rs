//! `image rm`: removes images.

use crate::{
    commands::each::for_each,
    failure::Failure,
    images::{self, RegistryOptions},
    runtime, stdio,
};
use clap::Args;

/// Remove images; sandboxes that were created from them keep working
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// References of images, or the beginning of the ID of an image that has one reference
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rm {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let opened = images::open(&RegistryOptions::default(), None)?;
        runtime::block_on(for_each(&self.images, async |image| {
            let (removed, _) = opened.store.remove(&opened.named(image)?)?;
            stdio::print(&removed.iter().map(|tag| format!("{}\n", tag.reference)).collect::<String>())
        }))
    }
}
