//! Why changes are not applied.

use std::{fmt, io, path::PathBuf};

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
    /// The new contents are larger than the free space of the project's file system. Nothing was applied.
    #[error("cannot apply: the changes need {needed} bytes, and the file system of the directory has {free} free")]
    NoSpace {
        /// Size of the new contents in bytes.
        needed: u64,
        /// Free space in bytes.
        free: u64,
    },
    /// A step failed or found a conflict, and not all steps before it could be undone.
    #[error("the apply failed, and could not be undone at {0}")]
    NotUndone(Left),
    /// The staging directory was removed while steps were being done. What was done stays.
    #[error("the staging directory of the apply is gone; {done} of {steps} steps were done")]
    StagingGone {
        /// Number of steps that the project shows.
        done: u64,
        /// Number of all steps.
        steps: u64,
    },
    /// A test stopped it.
    #[error("stopped by a test")]
    Killed,
}

/// What undoing an apply did not put back: the host changed it meanwhile, or the system refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Paths in the project.
    pub paths: Vec<Vec<u8>>,
    /// Name of the directory in the project that has the old files, if there are any.
    pub kept: Option<Vec<u8>>,
}

impl fmt::Display for Left {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Maximum number of paths in a message.
        const SHOWN: usize = 10;
        for (number, path) in self.paths.iter().take(SHOWN).enumerate() {
            let separator = if number > 0 { ", " } else { "" };
            write!(out, "{separator}\"{}\"", path.escape_ascii())?;
        }
        if self.paths.len() > SHOWN {
            write!(out, " and {} more", self.paths.len() - SHOWN)?;
        }
        match &self.kept {
            Some(kept) => write!(out, "; the old files are in \"{}\"", kept.escape_ascii()),
            None => Ok(()),
        }
    }
}
