//! Why something could not be done with files: in the guest, or on the host.

use crate::{hostile_text::printable, sandbox::ExecError};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileFailure, FilePathError, FileReply};
use sandboxvm_tree::{PackError, UnpackError};
use std::{fmt, io, path::PathBuf};

/// Why something could not be done with the files of a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The sandbox cannot be asked, or the conversation failed.
    #[error("{0}")]
    Sandbox(#[from] ExecError),
    /// The guest refused.
    #[error(transparent)]
    Refused(#[from] FileRefusal),
    /// A path that no file can have.
    #[error("{0}")]
    Path(#[from] FilePathError),
    /// More entries than are taken from a guest.
    #[error("the directory has more than {0} entries")]
    TooMany(usize),
}

impl FileError {
    /// The kind of what the guest refused.
    #[must_use]
    pub fn kind(&self) -> Option<FileErrorKind> {
        if let Self::Refused(refusal) = self { Some(refusal.kind) } else { None }
    }
}

/// What the guest says it could not do. Its text is escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRefusal {
    /// For programs.
    pub kind: FileErrorKind,
    /// Linux's error number, where it was Linux that refused.
    pub errno: Option<i32>,
    /// The file.
    pub path: Option<String>,
    /// What was tried and why it failed.
    pub message: String,
}

impl fmt::Display for FileRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{path} in the sandbox: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for FileRefusal {}

/// A reply that is no failure.
pub(super) fn unless_failed(reply: FileReply) -> Result<FileReply, FileError> {
    match reply {
        FileReply::Failed(failure) => Err(refusal(failure).into()),
        reply => Ok(reply),
    }
}

fn refusal(failure: FileFailure) -> FileRefusal {
    // One line: a second one could be taken for ours.
    let line = |text: &str| printable(text).replace('\n', "\\n");
    FileRefusal {
        kind: failure.kind,
        errno: failure.errno,
        path: failure.path.map(|path| line(&String::from_utf8_lossy(path.as_bytes()))),
        message: line(&failure.message),
    }
}

/// Why files were not copied between host and sandbox.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The sandbox's side.
    #[error("{0}")]
    Files(#[from] FileError),
    /// A file of the host.
    #[error("cannot {step} {}: {error}", path.display())]
    Host {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// What is there stands in the way.
    #[error("{}: {problem}", path.display())]
    Target {
        /// What is there.
        path: PathBuf,
        /// Why it is in the way.
        problem: &'static str,
    },
    /// The host's files cannot be packed.
    #[error("cannot read the files of the host: {0}")]
    Pack(#[from] PackError),
    /// What the guest sent was not unpacked to its end.
    #[error("cannot copy from the sandbox: {}", printable(&.0.to_string()))]
    Unpack(#[from] UnpackError),
    /// Given up by the caller.
    #[error("the copy was interrupted; each file is either complete or unchanged")]
    GivenUp,
}

impl CopyError {
    /// Returns true if the sandbox sent more bytes than [`CopyLimits::max_bytes`](crate::CopyLimits::max_bytes).
    #[must_use]
    pub fn exceeds_bytes(&self) -> bool {
        matches!(self, Self::Unpack(UnpackError::TooLarge(_)))
    }

    /// Returns true if the sandbox sent more entries than [`CopyLimits::max_entries`](crate::CopyLimits::max_entries).
    #[must_use]
    pub fn exceeds_entries(&self) -> bool {
        matches!(self, Self::Unpack(UnpackError::TooMany(_)))
    }
}
