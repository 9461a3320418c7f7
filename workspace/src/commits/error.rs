//! Why commits are not fetched.

use crate::review::ReviewError;
use std::{io, path::PathBuf, time::Duration};

/// Why commits of a sandbox cannot be fetched. The repository is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CommitsError {
    /// A file of the sandbox cannot be read.
    #[error(transparent)]
    Review(#[from] ReviewError),
    /// The project has no directory `.git` on the host.
    #[error("cannot fetch the commits of the sandbox: {} is not the directory of a git repository", .0.display())]
    NoRepository(PathBuf),
    /// The host has no program `git`.
    #[error("cannot fetch the commits of the sandbox: the host has no program git")]
    NoGit,
    /// git refused.
    #[error("cannot fetch the commits of the sandbox: git {command}: {message}")]
    Git {
        /// The command of git.
        command: String,
        /// What it wrote, from a guest's names.
        message: String,
    },
    /// An object is not one of git.
    #[error("cannot fetch the commits of the sandbox: invalid object \"{}\": {problem}", .path.escape_ascii())]
    Object {
        /// Path in the project.
        path: Vec<u8>,
        /// What is wrong.
        problem: &'static str,
    },
    /// The repository of the sandbox exceeds a limit in bytes.
    #[error("cannot fetch the commits of the sandbox: the {what} is larger than {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// git did not end.
    #[error("cannot fetch the commits of the sandbox: git took longer than {} s", .limit.as_secs())]
    TooSlow {
        /// The limit.
        limit: Duration,
    },
    /// More branches than are taken from one sandbox.
    #[error("cannot fetch the commits of the sandbox: it has more than {limit} new branches")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// A file of the quarantine cannot be read or written.
    #[error("cannot fetch the commits of the sandbox: {0}")]
    Io(#[from] io::Error),
}
