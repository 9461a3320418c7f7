//! The specification of a workspace, and its checks.

use crate::hostile_text::printable;
use sandboxvm_protocol::{
    agent::{files::MAX_PATH, workspace::MAX_SLOTS},
    ids::SandboxName,
};
use std::path::PathBuf;

/// Why a sandbox cannot have this workspace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkspaceError {
    /// The number of disks is out of range.
    #[error("invalid number of disks of a workspace {0}: must be between 1 and {MAX_SLOTS}")]
    Slots(usize),
    /// The path in the guest cannot be that of a workspace.
    #[error(
        "invalid path of a workspace in the sandbox \"{}\": expected an absolute path of at most {MAX_PATH} bytes, other \
         than /, without \".\", \"..\" and empty parts", printable(.0)
    )]
    Path(String),
    /// The path on the host is not absolute, or not UTF-8.
    #[error("invalid directory of a workspace {0:?}: expected an absolute path in UTF-8")]
    Origin(PathBuf),
    /// A machine that is restored has the workspace of its snapshot, or none.
    #[error("cannot give the sandbox a workspace: it starts from snapshot {0}, and has that of the snapshot or none")]
    OfSnapshot(SandboxName),
}

/// What the workspace of a new sandbox is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceSpec {
    /// Files with an EROFS each, bottom up: 1 to 4. They are linked into the sandbox's directory, or
    /// copied from another file system, and must never be written again.
    pub slots: Vec<PathBuf>,
    /// A file that says what the slots contain. It is kept beside them, and never read here.
    pub index: Option<PathBuf>,
    /// Absolute path of the directory in the guest, which is created if it is missing.
    pub at: String,
    /// User and group ID of that directory in the guest.
    pub owner: (u32, u32),
    /// Absolute path of the directory on the host.
    pub origin: PathBuf,
}

impl WorkspaceSpec {
    /// Rejects a workspace that no sandbox can have.
    ///
    /// # Errors
    /// Every [`WorkspaceError`] except `OfSnapshot`.
    pub fn check(&self) -> Result<(), WorkspaceError> {
        if !(1..=MAX_SLOTS).contains(&self.slots.len()) {
            return Err(WorkspaceError::Slots(self.slots.len()));
        }
        let parts = self.at.strip_prefix('/').map(|path| path.split('/'));
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if self.at.len() > MAX_PATH || !parts.is_some_and(|mut parts| parts.all(is_part)) {
            return Err(WorkspaceError::Path(self.at.clone()));
        }
        if !self.origin.is_absolute() || self.origin.to_str().is_none() {
            return Err(WorkspaceError::Origin(self.origin.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example(slots: usize) -> WorkspaceSpec {
        WorkspaceSpec {
            slots: (0..slots).map(|n| format!("/cache/{n}").into()).collect(),
            index: None,
            at: "/workspace".to_owned(),
            owner: (0, 0),
            origin: "/home/me/project".into(),
        }
    }

    #[test]
    fn invalid_workspaces_are_refused() {
        example(1).check().unwrap();
        WorkspaceSpec { at: "/home/user/my project".into(), ..example(4) }.check().unwrap();
        for count in [0, 5] {
            assert_eq!(example(count).check(), Err(WorkspaceError::Slots(count)));
        }
        for at in ["", "/", "workspace", "/a/", "//a", "/a/../b", "/a/./b", "/a\0", &format!("/{}", "a".repeat(5000))] {
            let spec = WorkspaceSpec { at: at.into(), ..example(1) };
            assert_eq!(spec.check(), Err(WorkspaceError::Path(at.into())), "{at}");
        }
        let spec = WorkspaceSpec { origin: "project".into(), ..example(1) };
        assert!(matches!(spec.check(), Err(WorkspaceError::Origin(_))));
    }
}
