//! Deletes directories that were renamed into `trash/` and to which no process belongs. Only
//! `discard`, which ends its processes first, may delete a sandbox.

use crate::home::directory::DirectoryError;
use std::{fs, io, path::Path};

/// Deletes a directory tree. Another process may be deleting it at the same time.
pub(crate) fn delete(path: &Path) -> Result<(), DirectoryError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DirectoryError::new("remove", path, error)),
        _ => Ok(()),
    }
}
