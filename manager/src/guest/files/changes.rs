//! The changes of a sandbox's disk: everything in which it differs from the image, as the layer of a
//! container image. Those of a workspace are the same for its slots. This module bounds what a guest may send and never looks at the bytes: they are
//! hostile, and a caller that unpacks them has to treat them so.

use super::{FileError, Files, stream::Incoming};
use crate::sandbox::Sandbox;
use sandboxvm_protocol::{
    agent::{
        files::{FileOperation, FileReply, FileTotals},
        mounts::MountTable,
        share::ShareMount,
        workspace::WorkspaceMount,
    },
    machine::SlotNumber,
};

/// A layer, as its bytes arrive: a tar archive with whiteouts, not compressed. If it is not read,
/// the guest stalls, and no memory grows. Dropping it cancels the request.
#[derive(Debug)]
pub struct DiskChanges<'s> {
    data: Incoming<'s>,
    budget: Budget,
}

impl Sandbox {
    /// Packs everything in which the disk of the running sandbox differs from its image. What the
    /// agent itself creates at boot is not part of it. `max_bytes` limits the size of the layer in
    /// bytes; files with holes count with their full size. Waits for a sandbox that still boots. As
    /// with `cp`, processes that change files meanwhile may be in the middle of a change.
    ///
    /// # Errors
    /// Every [`FileError`]. An agent of an earlier version, which a snapshot may contain, refuses
    /// the request.
    pub async fn disk_changes(&self, max_bytes: u64) -> Result<DiskChanges<'_>, FileError> {
        let files = Files::of(self);
        match files.begin(FileOperation::PackChanges).await? {
            (connection, FileReply::Begun(None)) => {
                Ok(DiskChanges { data: Incoming::new(self, connection), budget: Budget::new(max_bytes) })
            }
            _ => Err(FileError::unexpected("answer to a request for the changes of the disk")),
        }
    }
}

impl<'s> Files<'s> {
    /// Packs the changes of the workspace whose lowest slot this is.
    pub(crate) async fn workspace_changes(
        &self,
        lowest: SlotNumber,
        max_bytes: u64,
    ) -> Result<DiskChanges<'s>, FileError> {
        match self.begin(FileOperation::PackWorkspace { lowest }).await? {
            (connection, FileReply::Begun(None)) => {
                Ok(DiskChanges { data: Incoming::new(self.sandbox, connection), budget: Budget::new(max_bytes) })
            }
            _ => Err(FileError::unexpected("answer to a request for the changes of a workspace")),
        }
    }

    /// Mounts a workspace, unless it is mounted.
    pub(crate) async fn mount_workspace(&self, mount: WorkspaceMount) -> Result<(), FileError> {
        match self.begin(FileOperation::MountWorkspace(mount)).await?.1 {
            FileReply::Done(_) => Ok(()),
            _ => Err(FileError::unexpected("answer to a request to mount a workspace")),
        }
    }
}

impl Files<'_> {
    /// Mounts a live share, unless it is mounted.
    pub(crate) async fn mount_share(&self, mount: ShareMount) -> Result<(), FileError> {
        match self.begin(FileOperation::MountShare(mount)).await?.1 {
            FileReply::Done(_) => Ok(()),
            _ => Err(FileError::unexpected("answer to a request to mount a share")),
        }
    }

    /// Mounts volumes and file systems in memory, unless they are mounted.
    pub(crate) async fn mount(&self, table: MountTable) -> Result<(), FileError> {
        match self.begin(FileOperation::Mount(table)).await?.1 {
            FileReply::Done(_) => Ok(()),
            _ => Err(FileError::unexpected("answer to a request to mount file systems")),
        }
    }
}

impl DiskChanges<'_> {
    /// Returns at most 64 KiB, or `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// [`FileError::TooLarge`] for a layer above the limit. Others when the guest fails, or the
    /// connection ends before the layer does. What arrived until then is not a layer.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FileError> {
        let Some(bytes) = self.data.next().await? else { return Ok(None) };
        self.budget.spend(bytes.len())?;
        Ok(Some(bytes))
    }

    /// Returns the totals, as the guest counts them, once [`Self::next`] has returned `None`.
    #[must_use]
    pub fn totals(&self) -> Option<FileTotals> {
        self.data.totals
    }
}

/// How many bytes may still arrive.
#[derive(Debug)]
struct Budget {
    limit: u64,
    left: u64,
}

impl Budget {
    fn new(limit: u64) -> Self {
        Self { limit, left: limit }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), FileError> {
        let left = u64::try_from(bytes).ok().and_then(|bytes| self.left.checked_sub(bytes));
        // Once it is exceeded, nothing more is accepted.
        self.left = left.unwrap_or(0);
        left.map(drop).ok_or(FileError::TooLarge(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_above_its_limit_is_refused_with_the_first_byte_too_many() {
        let mut budget = Budget::new(100);
        assert!(budget.spend(60).is_ok());
        assert!(budget.spend(40).is_ok());
        assert!(matches!(budget.spend(1), Err(FileError::TooLarge(100))));
        assert!(Budget::new(100).spend(usize::MAX).is_err());
    }
}
