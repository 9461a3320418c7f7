//! What a plan does with each path: the steps that are executed, and what a reader is shown of them.

use crate::review::{compare::ChangeKind, layer::State};

/// Where a new content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The sandbox.
    Sandbox(State),
    /// Both sides, joined. `mode` is that of the result.
    Merge { old: State, new: State, mode: u32 },
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Remove(State),
    RemoveDirectory,
    Create { source: Source, owner: (u32, u32) },
    Replace { source: Source, owner: (u32, u32), was: State },
    Mode { from: u32, to: u32 },
}

/// What will happen to one path, for a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Path in the project.
    pub path: Vec<u8>,
    /// What happens to it.
    pub kind: ChangeKind,
    /// The content is joined from both sides.
    pub is_merged: bool,
    /// Where it leads, if it is to be a symbolic link.
    pub target: Option<Vec<u8>>,
}
