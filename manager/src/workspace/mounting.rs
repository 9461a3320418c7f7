//! Tells the agent to mount the workspace before anything else uses the guest.
//!
//! The file `workspace.due` in the directory of a sandbox means that its machine may not have mounted
//! its workspace yet. Mounting twice is harmless: the agent does nothing if it is mounted.

use super::{files, record::WorkspaceRecord};
use crate::{
    guest::{
        error::ExecError,
        files::{FileError, Files},
    },
    home::directory::{DirectoryError, SandboxDirectory},
    sandbox::Sandbox,
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::agent::{files::FilePath, workspace::WorkspaceMount};

const DUE: &str = "workspace.due";

/// Records that the machine of `directory` has to mount its workspace, if it has one.
pub(crate) fn make_due(directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    if !files::are_in(directory) || directory.has(DUE) { Ok(()) } else { directory.create_file(DUE).map(drop) }
}

/// Records that a copy of the machine of `of` has to mount its workspace, if that machine has not.
pub(crate) fn inherit_due(directory: &SandboxDirectory, of: &SandboxDirectory) -> Result<(), DirectoryError> {
    if of.has(DUE) { make_due(directory) } else { Ok(()) }
}

impl Sandbox {
    /// Returns the workspace of the sandbox, if it has one.
    #[must_use]
    pub fn workspace(&self) -> Option<&WorkspaceRecord> {
        self.record.workspace.as_ref()
    }

    /// Mounts the workspace if that is due.
    pub(crate) fn mount_workspace(&self) -> BoxFuture<'_, Result<(), ExecError>> {
        Box::pin(async move {
            let Some(record) = self.record.workspace.as_ref().filter(|_| self.directory.has(DUE)) else {
                return Ok(());
            };
            let failed = |error: FileError| match error {
                FileError::Sandbox(error) => error,
                error => ExecError::Workspace(error.to_string()),
            };
            let at = FilePath::try_from(record.at.as_str()).map_err(|error| failed(error.into()))?;
            let mount = WorkspaceMount { slots: record.numbers(), at, uid: record.uid, gid: record.gid };
            Files::of(self).mount_workspace(mount).await.map_err(failed)?;
            Ok(self.directory.unlink(DUE)?)
        })
    }
}
