//! `image load`: images from archives and directories.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions},
    output::progress,
    runtime, stdio,
};
use clap::Args;
use std::{
    fs::File,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

/// Load images from an archive of docker or OCI tools, or from an OCI layout directory
#[derive(Debug, Args)]
pub(super) struct Load {
    /// Archive, plain or with gzip, or directory [default: an archive on standard input]
    #[arg(short, long, value_name = "PATH")]
    input: Option<PathBuf>,
    /// Reference for the image, in place of the names in the archive; the archive may hold one image only
    #[arg(long, value_name = "IMAGE")]
    name: Option<String>,
}

impl Load {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let opened = images::open(&RegistryOptions::default(), None)?;
        let name = self.name.as_deref().map(|name| opened.settings.reference(name)).transpose()?;
        let images = opened.store.images().clone();
        let input = self.input.filter(|path| path != Path::new("-"));
        if input.is_none() && io::stdin().is_terminal() {
            return Err(Failure::new("standard input is a terminal").hinted("give an archive with -i".to_owned()));
        }
        runtime::block_on(async {
            let loading = tokio::task::spawn_blocking(move || match input {
                None => Ok(images.load(io::stdin().lock(), name.as_ref())?),
                Some(path) if path.is_dir() => Ok(images.load_layout(&path, name.as_ref())?),
                Some(path) => {
                    let file = File::open(&path)
                        .map_err(|error| Failure::new(format_args!("cannot open {}: {error}", path.display())))?;
                    Ok::<_, Failure>(images.load(file, name.as_ref())?)
                }
            });
            let loaded = progress::during("loading", loading).await;
            for image in loaded.map_err(|error| Failure::new(format_args!("cannot load: {error}")))?? {
                let digest = image.manifest;
                match image.references.as_slice() {
                    [] => stdio::print(&format!("{digest}\n"))?,
                    names => {
                        stdio::print(&names.iter().map(|name| format!("{name} {digest}\n")).collect::<String>())?;
                    }
                }
                opened.bootable(&digest.to_string()).await?;
            }
            Ok(0)
        })
    }
}
