//! Deletes directories that were renamed into `trash/` and that no process belongs to. Sandboxes are deleted by
//! `discard`, which ends their processes first.

use crate::home::directory::DirectoryError;
use std::{fs, io, path::Path};

/// Deletes a directory tree. Another process may be deleting it too.
pub(crate) fn delete(path: &Path) -> Result<(), DirectoryError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DirectoryError::new("remove", path, error)),
        _ => Ok(()),
    }
}
