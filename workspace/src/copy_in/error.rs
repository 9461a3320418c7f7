//! Why a project is not copied in.

use super::{cache::CacheError, scan::ScanError};
use std::{io, path::PathBuf};

/// Why a project cannot be copied in.
#[derive(Debug, thiserror::Error)]
pub enum CopyInError {
    /// A file of the project cannot be read.
    #[error("cannot {step} \"{}\": {error}", .path.escape_ascii())]
    File {
        /// What failed.
        step: &'static str,
        /// Its path: below the root, or that of the root itself.
        path: Vec<u8>,
        /// The reason.
        error: io::Error,
    },
    /// The project cannot be walked.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A file cannot be written to a layer.
    #[error("cannot copy \"{}\": {error}", .path.escape_ascii())]
    Image {
        /// Its path.
        path: Vec<u8>,
        /// The reason.
        error: sandboxvm_layers::ImageError,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The project contains the cache, which would be copied into itself.
    #[error("cannot copy \"{}\": it contains the home of sandboxvm", .0.display())]
    ContainsCache(PathBuf),
}
