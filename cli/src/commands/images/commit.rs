//! `commit`: the disk of a running sandbox as an image.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions},
    options::supervision,
    output::progress,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::CommitSpec;

/// Store the disk of a running sandbox as an image
#[derive(Debug, Args)]
#[command(
    after_help = "Memory and processes are not part of the image. It consists of the layers of the sandbox's image, and of what the sandbox changed as one more layer. The \
                  sandbox keeps running: a file that is being written may be stored half-written."
)]
pub(crate) struct Commit {
    /// Name or ID of a sandbox that was created from a container image
    sandbox: String,
    /// Reference for the new image, such as app:tested
    image: String,
}

impl Commit {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        let opened = images::open(&RegistryOptions::default(), Some(&self.image))?;
        let reference = opened.settings.reference(&self.image)?.to_string();
        let spec = CommitSpec { tag: Some(reference.clone()), ..CommitSpec::default() };
        runtime::block_on(async {
            let digest = progress::during("packing", opened.store.commit(&sandbox, &spec)).await?;
            opened.bootable(&reference).await?;
            stdio::print(&format!("{reference} {digest}\n"))?;
            Ok(0)
        })
    }
}
