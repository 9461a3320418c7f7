//! Why changes are not applied.

use std::{io, path::PathBuf};

/// Why changes are not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The plan has conflicts.
    #[error("cannot apply: the plan has {0} conflicts")]
    Conflicts(usize),
    /// The host changed a path after the plan was made. Nothing was applied.
    #[error("cannot apply \"{}\": it changed meanwhile; nothing was applied", .0.escape_ascii())]
    Changed(Vec<u8>),
    /// A file of the project cannot be changed.
    #[error("cannot {step} \"{}\": {error}", .path.escape_ascii())]
    File {
        /// What failed.
        step: &'static str,
        /// Path in the project.
        path: Vec<u8>,
        /// The reason.
        error: io::Error,
    },
    /// The journal cannot be used.
    #[error("cannot {step} the journal in \"{}\": {error}", .path.display())]
    Journal {
        /// What failed.
        step: &'static str,
        /// Directory of the sandbox.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The project is no longer the directory for which the journal was written.
    #[error("\"{}\" is not the directory to which changes were being applied", .0.display())]
    OtherRoot(PathBuf),
    /// An earlier apply of this sandbox was killed, and is neither finished nor undone.
    #[error("an earlier apply was interrupted")]
    Pending,
    /// A test stopped it.
    #[error("stopped by a test")]
    Killed,
}
