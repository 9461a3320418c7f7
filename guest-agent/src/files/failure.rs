//! Errors of operations on files, in the form of the wire.

use rustix::io::Errno;
use sandboxvm_protocol::agent::files::{FileErrorKind, FileFailure, FilePath};

/// Why a request was not completed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It failed, and the host receives the failure.
    Failed(Box<FileFailure>),
    /// The host has closed the connection, or breaks the rules of the wire.
    Gone,
}

/// Returns a failure.
pub(super) fn failure(kind: FileErrorKind, path: Option<&[u8]>, message: String) -> Trouble {
    let path = path.and_then(|path| FilePath::try_from(path.to_vec()).ok());
    Trouble::Failed(Box::new(FileFailure { kind, errno: None, path, message }))
}

/// Returns the failure of a system call.
pub(super) fn refused(step: &str, path: &[u8], errno: Errno) -> Trouble {
    let message = format!("cannot {step}: {errno}");
    Trouble::Failed(Box::new(FileFailure {
        kind: kind(errno),
        errno: Some(errno.raw_os_error()),
        path: FilePath::try_from(path.to_vec()).ok(),
        message,
    }))
}

/// Returns the kind of failure for an errno.
pub(super) fn kind(errno: Errno) -> FileErrorKind {
    match errno {
        Errno::NOENT => FileErrorKind::NotFound,
        Errno::EXIST => FileErrorKind::AlreadyExists,
        Errno::ISDIR => FileErrorKind::IsADirectory,
        Errno::NOTDIR => FileErrorKind::NotADirectory,
        Errno::NOTEMPTY => FileErrorKind::NotEmpty,
        Errno::ACCESS | Errno::PERM => FileErrorKind::PermissionDenied,
        Errno::NOSPC | Errno::DQUOT => FileErrorKind::NoSpace,
        Errno::ROFS => FileErrorKind::ReadOnly,
        Errno::NAMETOOLONG | Errno::LOOP => FileErrorKind::BadPath,
        Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN => FileErrorKind::Resources,
        Errno::NXIO | Errno::NODEV => FileErrorKind::NotAFile,
        _ => FileErrorKind::Other,
    }
}
