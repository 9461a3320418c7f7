//! Why something could not be done with files: in the guest, or on the host.

use crate::{guest::error::ExecError, hostile_text::printable};
use sandboxvm_archive::{PackError, UnpackError};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileFailure, FilePathError, FileReply};
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
    #[error("the directory holds more than {0} entries; list it level by level")]
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

impl FileRefusal {
    /// What whoever asked can do about it.
    fn hint(&self) -> Option<&'static str> {
        Some(match self.kind {
            FileErrorKind::NoSpace => "remove something in the sandbox, or make one with a larger --disk",
            FileErrorKind::PermissionDenied => "ask as another user, or change the file's mode or owner",
            FileErrorKind::ReadOnly => "write to another place",
            FileErrorKind::NotEmpty => "remove it with all that is in it",
            FileErrorKind::Resources => "end something in the sandbox, or make one with more --memory",
            FileErrorKind::BadArchive => "what was there before it stays as it was unpacked",
            _ => return None,
        })
    }
}

impl fmt::Display for FileRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{path} in the sandbox: ")?;
        }
        f.write_str(&self.message)?;
        self.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"))
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
    #[error("reading the host's files: {0}")]
    Pack(#[from] PackError),
    /// What the guest sent was not unpacked to its end.
    #[error("what the sandbox sends: {}{}", printable(&.0.to_string()), cap_hint(.0))]
    Unpack(#[from] UnpackError),
    /// Given up by the caller.
    #[error("the copy was given up; each file is either whole or as it was")]
    GivenUp,
}

fn cap_hint(error: &UnpackError) -> &'static str {
    match error {
        UnpackError::TooLarge(_) => "; --max-size allows more",
        UnpackError::TooMany(_) => "; --max-files allows more",
        _ => "",
    }
}
