//! Failures of loading images from files.

use crate::{config::ConfigError, manifest::ManifestError, store::StoreError};
use sandboxvm_archive::ReadError;
use std::{io, path::PathBuf};

/// Why an archive or layout is not loaded. The store has no part of the image that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Reading failed.
    #[error("cannot read the image: {0}")]
    Input(#[source] io::Error),
    /// The input is not a tar archive.
    #[error(transparent)]
    Archive(#[from] ReadError),
    /// Docker's daemon does not give the image.
    #[error("cannot load the image from docker at {}: {problem}", .socket.display())]
    Daemon {
        /// The daemon's socket.
        socket: PathBuf,
        /// Why not, in the daemon's words if it has some.
        problem: String,
    },
    /// The archive does not describe images.
    #[error("invalid image archive: {0}")]
    Malformed(String),
    /// The archive exceeds a limit.
    #[error("the image archive is too large: {0}")]
    TooLarge(String),
    /// The archive names no image, and neither does the caller.
    #[error("the archive does not name its image")]
    NoName,
    /// A manifest is not accepted.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A configuration is not accepted.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
