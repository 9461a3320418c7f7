//! `image load`: images from archives and directories.

use crate::{
    environment,
    failure::Failure,
    images::{self, Opened, RegistryOptions},
    output::progress,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_oci::sources::Loaded;
use std::{
    fs::File,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

/// What precedes the name of an image of docker's daemon.
const DAEMON: &str = "docker-daemon:";

/// Load images from an archive of docker or OCI tools, from an OCI layout directory, or from docker's daemon
#[derive(Debug, Args)]
pub(super) struct Load {
    /// Archive, plain or with gzip, or directory, or docker-daemon:IMAGE [default: an archive on standard input]
    #[arg(short, long, value_name = "SOURCE")]
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
        let of_daemon = input.as_deref().and_then(Path::to_str).and_then(|text| text.strip_prefix(DAEMON));
        if let Some(image) = of_daemon {
            let image = opened.settings.reference(image)?;
            let socket = environment::docker_socket()?;
            return runtime::block_on(async {
                let loading = opened.store.images().load_daemon(&socket, &image, name.as_ref().unwrap_or(&image));
                let loaded = progress::during("loading", loading).await?;
                finish(&opened, &loaded).await
            });
        }
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
            finish(&opened, &loaded.map_err(|error| Failure::new(format_args!("cannot load: {error}")))??).await
        })
    }
}

/// Makes the disks of images that were loaded, and prints their references.
async fn finish(opened: &Opened, loaded: &[Loaded]) -> Result<u8, Failure> {
    for Loaded { references, manifest, .. } in loaded {
        opened.bootable(&manifest.to_string()).await?;
        let names = references.iter().map(|name| format!("{name} {manifest}\n"));
        stdio::print(&if references.is_empty() { format!("{manifest}\n") } else { names.collect() })?;
    }
    Ok(0)
}
