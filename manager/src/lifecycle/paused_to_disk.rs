//! Sandboxes that rest on disk: nothing of them runs, and they are to go on. The mark keeps `prune` from taking such a one
//! for one that has ended. Set and taken back by whoever keeps the snapshot that it goes on from.

use crate::{
    home::directory::{DirectoryError, SandboxDirectory},
    sandbox::Sandbox,
};

const MARK: &str = "parked";

pub(crate) fn is_parked(directory: &SandboxDirectory) -> bool {
    directory.path().join(MARK).exists()
}

impl Sandbox {
    /// Keeps it from [`crate::Manager::prune`], whether or not it runs, until [`Self::unpark`].
    ///
    /// # Errors
    /// When the mark cannot be made.
    pub fn park(&self) -> Result<(), DirectoryError> {
        if is_parked(&self.directory) {
            return Ok(());
        }
        self.directory.create_file(MARK).map(drop)
    }

    /// Takes the mark away.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn unpark(&self) -> Result<(), DirectoryError> {
        self.directory.unlink(MARK)
    }

    /// True while it rests on disk.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        is_parked(&self.directory)
    }
}
