//! `image save`: an image as an archive.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions},
};
use clap::Args;
use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::PathBuf,
};

/// Write an image as a tar archive that docker, podman and OCI tools load
#[derive(Debug, Args)]
pub(super) struct Save {
    /// Reference of the image
    image: String,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Save {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let opened = images::open(&RegistryOptions::default(), None)?;
        let images = opened.store.images();
        match self.output {
            None if io::stdout().is_terminal() => {
                Err(Failure::new("standard output is a terminal").hinted("write to a file with -o".to_owned()))
            }
            None => Ok(images.save(&self.image, io::stdout().lock())?),
            Some(path) => {
                // An image that does not exist must not replace a file.
                images.inspect(&self.image)?;
                let failed = |error| Failure::new(format_args!("cannot write {}: {error}", path.display()));
                let mut file = BufWriter::new(File::create(&path).map_err(failed)?);
                images.save(&self.image, &mut file)?;
                file.flush().map_err(failed)
            }
        }
        .map(|()| 0)
    }
}
