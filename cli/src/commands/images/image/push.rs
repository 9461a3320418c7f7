//! `image push`: sends images to registries.

use crate::{
    commands::each::for_each,
    failure::Failure,
    images::{self, RegistryOptions},
    runtime, stdio,
};
use clap::Args;

/// Push images to the registry that their references name
#[derive(Debug, Args)]
pub(super) struct Push {
    /// References of images; `image tag` gives an image another one
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    registry: RegistryOptions,
}

impl Push {
    pub(super) fn run(self) -> Result<u8, Failure> {
        runtime::block_on(for_each(&self.images, async |image| {
            let opened = images::open(&self.registry, Some(image))?;
            let reference = opened.settings.reference(image)?;
            opened.push(&reference).await?;
            stdio::print(&format!("{reference}\n"))
        }))
    }
}
