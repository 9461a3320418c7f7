//! Gives a sandbox its control group: the one that it had before, one of the pool, or a new one.

use super::{
    handle::{Group, LINK, is_ours, target},
    making, pool,
};
use crate::home::{
    directory::{DirectoryError, SandboxDirectory},
    layout::Home,
};
use rustix::{fs::readlinkat, io::Errno};

impl Group {
    /// Gives the group its controllers again, and makes it if it was removed.
    pub(crate) fn remake(&self) {
        // A group that cannot be made bounds nothing, as on a host without groups.
        let _ = making::make(self.path());
    }

    /// Returns a group for a VMM that is about to be started in `directory`: the one that the
    /// sandbox had before, one of the pool, or a new one. Returns `None` if no group can be made;
    /// then no link is left.
    pub(crate) fn take(home: &Home, directory: &SandboxDirectory) -> Result<Option<Self>, DirectoryError> {
        let found = match readlinkat(directory.fd(), LINK, Vec::new()) {
            Ok(_) => Self::renew(directory),
            Err(Errno::NOENT) if pool::take_into(home, directory) => Self::of(directory),
            Err(Errno::NOENT) => return Self::make_for(directory),
            Err(error) => return Err(directory.error("read", LINK, error)),
        };
        match found {
            Some(group) => Ok(Some(group)),
            // The host was restarted since the group was made, or its parent group was removed.
            None => {
                directory.unlink(LINK)?;
                Self::make_for(directory)
            }
        }
    }

    /// Makes the group that the sandbox had before again, under its path. Linux 6.18 kills a
    /// process that clone3(2) starts in a group that was killed at any time before: it compares the
    /// count of kills of the caller's group with that of the new one.
    fn renew(directory: &SandboxDirectory) -> Option<Self> {
        let path = target(directory.fd(), LINK).filter(|path| is_ours(path))?;
        if Self::remove(&path) {
            making::make(&path).ok()?;
        }
        Self::of(directory)
    }

    fn make_for(directory: &SandboxDirectory) -> Result<Option<Self>, DirectoryError> {
        let Some(path) = making::new_path() else { return Ok(None) };
        rustix::fs::symlinkat(&path, directory.fd(), LINK).map_err(|error| directory.error("link", LINK, error))?;
        if making::make(&path).is_ok()
            && let Some(group) = Self::of(directory)
        {
            return Ok(Some(group));
        }
        Self::remove(&path);
        directory.unlink(LINK)?;
        Ok(None)
    }
}
