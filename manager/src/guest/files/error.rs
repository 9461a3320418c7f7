//! Why an operation on files failed, in the guest or on the host.

use crate::{guest::error::ExecError, hostile_text::printable};
use sandboxvm_archive::{PackError, UnpackError};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileFailure, FilePathError, FileReply};
use std::{fmt, io, path::PathBuf};

/// Why an operation on the files of a sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The request could not be sent, or the exchange failed.
    #[error("{0}")]
    Sandbox(#[from] ExecError),
    /// The guest refused the request.
    #[error(transparent)]
    Refused(#[from] FileRefusal),
    /// A path that no file can have.
    #[error("{0}")]
    Path(#[from] FilePathError),
    /// The directory has more entries than are accepted from a guest.
    #[error("the directory has more than {0} entries")]
    TooMany(usize),
    /// The sandbox sent more bytes than the caller accepts.
    #[error("the changes have more than {0} bytes")]
    TooLarge(u64),
}

impl FileError {
    /// Returns the kind of the guest's refusal.
    #[must_use]
    pub fn kind(&self) -> Option<FileErrorKind> {
        if let Self::Refused(refusal) = self { Some(refusal.kind) } else { None }
    }
}

/// The failure that the guest reported. Its text is escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRefusal {
    /// The kind of failure, for programs.
    pub kind: FileErrorKind,
    /// The error number of Linux, if Linux refused.
    pub errno: Option<i32>,
    /// Path of the file.
    pub path: Option<String>,
    /// The operation, and why it failed.
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

/// Returns the reply, or an error if it is a failure.
pub(super) fn unless_failed(reply: FileReply) -> Result<FileReply, FileError> {
    match reply {
        FileReply::Failed(failure) => Err(refusal(failure).into()),
        reply => Ok(reply),
    }
}

fn refusal(failure: FileFailure) -> FileRefusal {
    // On one line: a second line could be taken for a message of sandboxvm.
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
    /// An operation in the sandbox failed.
    #[error("{0}")]
    Files(#[from] FileError),
    /// An operation on a file of the host failed.
    #[error("cannot {step} {}: {error}", path.display())]
    Host {
        /// The operation.
        step: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The target cannot be replaced by the copy.
    #[error("{}: {problem}", path.display())]
    Target {
        /// Path of the target.
        path: PathBuf,
        /// Why it cannot be replaced.
        problem: &'static str,
    },
    /// The files of the host cannot be packed.
    #[error("cannot read the files of the host: {0}")]
    Pack(#[from] PackError),
    /// The archive of the guest was not unpacked completely.
    #[error("cannot copy from the sandbox: {}", printable(&.0.to_string()))]
    Unpack(#[from] UnpackError),
    /// The caller cancelled the copy.
    #[error("the copy was interrupted; each file is either complete or unchanged")]
    GivenUp,
}

impl CopyError {
    /// Returns true if the sandbox sent more bytes than
    /// [`CopyLimits::max_bytes`](crate::CopyLimits::max_bytes).
    #[must_use]
    pub fn exceeds_bytes(&self) -> bool {
        matches!(self, Self::Unpack(UnpackError::TooLarge(_)))
    }

    /// Returns true if the sandbox sent more entries than
    /// [`CopyLimits::max_entries`](crate::CopyLimits::max_entries).
    #[must_use]
    pub fn exceeds_entries(&self) -> bool {
        matches!(self, Self::Unpack(UnpackError::TooMany(_)))
    }
}
