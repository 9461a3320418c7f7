//! Paths that both sides changed, for a reader.

use crate::review::{Extent, layer::State};

/// Why a path cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictKind {
    /// Both sides changed the content, the kind or the existence.
    Content,
    /// Both sides changed the permissions.
    Mode,
    /// The host has a device, a socket, a pipe or a mount point there.
    Special,
    /// A directory of the path is a symbolic link, a file or a mount point on the host.
    Blocked,
    /// The file system of the host ignores case, and has the same file for another path of the changes.
    OtherCase,
    /// The directory is replaced by a file, but has files on the host that the sandbox never had.
    NotEmpty,
}

/// A path that both sides changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Path in the project.
    pub path: Vec<u8>,
    /// Why it cannot be applied.
    pub kind: ConflictKind,
    /// What the sandbox was given.
    pub given: Option<State>,
    /// What the host has.
    pub host: Option<State>,
    /// What the sandbox has.
    pub sandbox: Option<State>,
    /// Lines that the host changed, if all are texts.
    pub host_extent: Option<Extent>,
    /// Lines that the sandbox changed, if all are texts.
    pub sandbox_extent: Option<Extent>,
}
