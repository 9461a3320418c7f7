//! Why changes cannot be planned.

use std::{io, path::PathBuf};

/// Why changes cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The project cannot be opened.
    #[error("cannot open the directory \"{}\": {error}", .path.display())]
    Root {
        /// Path of the project.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// A file of the project or of the sandbox cannot be read.
    #[error("cannot read \"{}\": {error}", .path.escape_ascii())]
    File {
        /// Path in the project.
        path: Vec<u8>,
        /// The reason.
        error: io::Error,
    },
    /// Another apply to the same project was interrupted, or is running.
    #[error("the directory has \"{}\", which belongs to another apply", .0.escape_ascii())]
    OtherApply(Vec<u8>),
    /// The sandbox has no changes at a path that was named.
    #[error("the sandbox has no changes at \"{}\"", .0.escape_ascii())]
    NoChanges(Vec<u8>),
}
