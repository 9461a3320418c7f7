//! `image tag`: another reference for an image.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions},
    stdio,
};
use clap::Args;

/// Give an image another reference
#[derive(Debug, Args)]
pub(super) struct Tag {
    /// Reference of the image, or the beginning of its ID
    image: String,
    /// The new reference; an image that has it loses it
    reference: String,
}

impl Tag {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let opened = images::open(&RegistryOptions::default(), None)?;
        opened.store.images().tag(&opened.named(&self.image)?, &self.reference)?;
        stdio::print(&format!("{}\n", opened.settings.reference(&self.reference)?))?;
        Ok(0)
    }
}
