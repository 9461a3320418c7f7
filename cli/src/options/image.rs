//! The image of a new sandbox: a file, or an image by its reference, which is pulled if the home does not have it;
//! and the command line of an image.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions},
    process_io::signals::Signals,
};
use clap::Args;
use sandboxvm_manager::{BootableImage, ImageDefaults};
use sandboxvm_oci::{Digest, store::Hold};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The image of a new sandbox.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct ImageOptions {
    /// Image to boot: a reference such as debian:12, the beginning of the ID of an image of the home, or the path of
    /// an EROFS file, which starts with / or ./ [default: the bundle's]
    #[arg(long)]
    image: Option<ImageName>,
    /// When to ask the registry for the image
    #[arg(long, value_enum, default_value = "missing")]
    pull: Pull,
    #[command(flatten, next_help_heading = "Image")]
    registry: RegistryOptions,
}

/// The value of `--image`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageName {
    /// An EROFS file.
    File(PathBuf),
    /// An image in the home or in a registry.
    Reference(String),
}

impl FromStr for ImageName {
    type Err = String;

    /// A file is named by a path that begins with `/`, `./` or `../`.
    fn from_str(text: &str) -> Result<Self, String> {
        if ["/", "./", "../"].iter().any(|start| text.starts_with(start)) {
            return Ok(Self::File(text.into()));
        }
        match sandboxvm_oci::Reference::parse(text, None) {
            Ok(_) => Ok(Self::Reference(text.to_owned())),
            Err(error) => Err(format!("{error}; the path of a file starts with / or ./")),
        }
    }
}

/// Whether `run` and `create` ask a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pull {
    /// If the home does not have the image
    Missing,
    /// Even if the home has an image of this name
    Always,
    /// Never
    Never,
}

impl ImageOptions {
    /// Finds the image, and pulls it if need be. Returns `None` if a signal arrived first.
    pub(crate) async fn find(&self, signals: &mut Signals) -> Result<Option<Image>, Failure> {
        match &self.image {
            None => Ok(Some(Image::default())),
            Some(ImageName::File(path)) => Ok(Some(Image { file: Some(path.clone()), ..Image::default() })),
            Some(ImageName::Reference(reference)) => tokio::select! {
                image = bootable(&self.registry, self.pull, reference) => Ok(Some(Image::from(image?))),
                _ = signals.next() => Ok(None),
            },
        }
    }
}

/// Returns an image of the home with its disk, and pulls it if need be.
pub(crate) async fn bootable(registry: &RegistryOptions, pull: Pull, text: &str) -> Result<BootableImage, Failure> {
    let opened = images::open(registry, Some(text))?;
    let reference = opened.settings.reference(text)?;
    // The digest of a manifest names an image of the home, and no registry.
    let named = opened.named(text)?;
    let is_digest = named.parse::<Digest>().is_ok();
    let is_here = || opened.store.images().inspect(text).is_ok();
    if is_digest || pull == Pull::Never || pull == Pull::Missing && is_here() {
        return opened.bootable(&named).await;
    }
    let pulled = opened.pull(&reference).await.map_err(|failure| match Path::new(text).is_file() {
        true => failure.hinted(format!("to boot the file, give its path as ./{text}")),
        false => failure,
    })?;
    // Another command may have given the reference to another image meanwhile.
    let mut image = opened.bootable(&pulled.manifest.to_string()).await?;
    text.clone_into(&mut image.defaults.reference);
    Ok(image)
}

/// What `--image` names, ready to boot. The default is the bundle's image, which says nothing of processes.
#[derive(Debug, Default)]
pub(crate) struct Image {
    /// The file system.
    pub(super) file: Option<PathBuf>,
    /// What it says about processes.
    pub(super) defaults: Option<ImageDefaults>,
    /// Its environment.
    pub(super) env: Vec<String>,
    /// Keeps an image from removal until the sandbox is created.
    _hold: Option<Hold>,
}

impl From<BootableImage> for Image {
    fn from(image: BootableImage) -> Self {
        Self { file: Some(image.disk), defaults: Some(image.defaults), env: image.env, _hold: Some(image.hold) }
    }
}

impl Image {
    /// Returns the user of the image's processes, if it names one.
    pub(crate) fn user(&self) -> Option<OsString> {
        self.defaults.as_ref()?.user.as_ref().map(OsString::from)
    }

    /// Returns the command line of the first process: see [`command_line`].
    pub(crate) fn command_line(&self, entrypoint: Option<&OsString>, typed: &[OsString]) -> Vec<OsString> {
        command_line(self.defaults.as_ref(), entrypoint, typed)
    }
}

/// Returns the command line of a new sandbox's first process: what the user typed, after the entry point of the image or of
/// `--entrypoint`. Empty if neither names a program.
fn command_line(image: Option<&ImageDefaults>, entrypoint: Option<&OsString>, typed: &[OsString]) -> Vec<OsString> {
    if let Some(entrypoint) = entrypoint {
        // As in docker: it also replaces the image's command, and an empty one removes the image's.
        let program = Some(entrypoint).filter(|program| !program.is_empty());
        return program.into_iter().chain(typed).cloned().collect();
    }
    let Some(image) = image else { return typed.to_vec() };
    let of_image = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let arguments = if typed.is_empty() { of_image(&image.command) } else { typed.to_vec() };
    of_image(&image.entrypoint).into_iter().chain(arguments).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_file_and_everything_else_a_reference() {
        for file in ["/a/b.erofs", "./b", "../b"] {
            assert_eq!(file.parse(), Ok(ImageName::File(file.into())));
        }
        for reference in ["debian", "python:3.12", "localhost:5000/a/b", "base.erofs"] {
            assert_eq!(reference.parse(), Ok(ImageName::Reference(reference.to_owned())));
        }
        let message = "a b".parse::<ImageName>().unwrap_err();
        assert!(message.contains("starts with / or ./"), "{message}");
    }

    #[test]
    fn what_was_typed_follows_the_entry_point_and_replaces_the_command() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let line = |image: Option<(&str, &str)>, entrypoint: Option<&str>, typed: &str| {
            let image = image.map(|(entrypoint, command)| ImageDefaults {
                entrypoint: words(entrypoint),
                command: words(command),
                ..ImageDefaults::default()
            });
            let typed: Vec<OsString> = typed.split_whitespace().map(OsString::from).collect();
            let line = command_line(image.as_ref(), entrypoint.map(OsString::from).as_ref(), &typed);
            line.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line(None, None, "ls -l"), "ls -l");
        assert_eq!(line(None, None, ""), "");
        assert_eq!(line(Some(("", "python3")), None, ""), "python3");
        assert_eq!(line(Some(("", "python3")), None, "sh -c x"), "sh -c x");
        assert_eq!(line(Some(("serve --all", "--port 80")), None, ""), "serve --all --port 80");
        assert_eq!(line(Some(("serve --all", "--port 80")), None, "--port 81"), "serve --all --port 81");
        assert_eq!(line(Some(("serve", "--port 80")), Some("/bin/sh"), ""), "/bin/sh");
        assert_eq!(line(Some(("serve", "--port 80")), Some("/bin/sh"), "-c x"), "/bin/sh -c x");
        assert_eq!(line(Some(("serve", "--port 80")), Some(""), "ls"), "ls");
    }
}
