//! `image pull`: fetches images from registries.

use crate::{
    commands::each::for_each,
    failure::Failure,
    images::{self, RegistryOptions},
    runtime, stdio,
};
use clap::Args;

/// Pull images from a registry, and print their digests
#[derive(Debug, Args)]
pub(super) struct Pull {
    /// References of images, such as debian:12 or registry.example/app@sha256:…
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    registry: RegistryOptions,
}

impl Pull {
    pub(super) fn run(self) -> Result<u8, Failure> {
        runtime::block_on(for_each(&self.images, async |image| {
            let opened = images::open(&self.registry, Some(image))?;
            let reference = opened.settings.reference(image)?;
            let pulled = opened.pull(&reference).await?;
            // The disk is made now, so that the first start is only a start.
            opened.bootable(&reference.to_string()).await?;
            stdio::print(&format!("{reference} {}\n", pulled.manifest))
        }))
    }
}
