//! Why an image cannot be used.

use crate::home::directory::DirectoryError;
use sandboxvm_images::bundle::BundleError;
use sandboxvm_layers::process::ProcessError;
use std::io;

/// A failed operation on the images of a home.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A registry, the store or the image itself.
    #[error(transparent)]
    Oci(#[from] sandboxvm_oci::Error),
    /// The program that reads layers cannot be used.
    #[error(transparent)]
    Program(#[from] BundleError),
    /// The home cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A thread cannot be started, or was ended.
    #[error("cannot read the layers of the image: {0}")]
    Thread(io::Error),
}

impl From<sandboxvm_oci::store::StoreError> for ImageError {
    fn from(error: sandboxvm_oci::store::StoreError) -> Self {
        Self::Oci(error.into())
    }
}

/// Why no disk was made of an image. The store reports it together with the digest of the image.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackFailure {
    /// The layer process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The layer process no longer reports anything.
    #[error("the layer process reported nothing for {0} seconds")]
    Silent(u64),
    /// The request of the layer process is limited.
    #[error("the image has a working directory and volumes with names of more than {0} KiB")]
    Directories(usize),
    /// The caller no longer waits.
    #[error("cancelled")]
    Cancelled,
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}
