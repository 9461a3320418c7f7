//! Sandboxes that are paused to disk: no process of theirs runs, and they are to be resumed later.
//! A mark in the directory keeps `prune` from removing such a sandbox as one that has ended. The
//! owner of the snapshot that the sandbox resumes from sets and removes the mark.

use crate::{
    home::directory::{DirectoryError, SandboxDirectory},
    sandbox::Sandbox,
};

const MARK: &str = "parked";

pub(crate) fn is_parked(directory: &SandboxDirectory) -> bool {
    directory.path().join(MARK).exists()
}

impl Sandbox {
    /// Keeps the sandbox from [`crate::Manager::prune`], whether or not it runs, until
    /// [`Self::unpark`].
    ///
    /// # Errors
    /// When the mark cannot be made.
    pub fn park(&self) -> Result<(), DirectoryError> {
        if is_parked(&self.directory) {
            return Ok(());
        }
        self.directory.create_file(MARK).map(drop)
    }

    /// Removes the mark of [`Self::park`].
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn unpark(&self) -> Result<(), DirectoryError> {
        self.directory.unlink(MARK)
    }

    /// Returns true while the sandbox is paused to disk.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        is_parked(&self.directory)
    }
}
