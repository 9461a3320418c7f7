//! Errors of file work, as the wire has them.

use rustix::io::Errno;
use sandboxvm_protocol::agent::files::{FileErrorKind, FileFailure, FilePath};

/// Why a request came to no good end.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It failed, and the host is to be told.
    Failed(Box<FileFailure>),
    /// The host is gone, or makes no sense.
    Gone,
}

/// A failure.
pub(super) fn failure(kind: FileErrorKind, path: Option<&[u8]>, message: String) -> Trouble {
    let path = path.and_then(|path| FilePath::try_from(path.to_vec()).ok());
    Trouble::Failed(Box::new(FileFailure { kind, errno: None, path, message }))
}

/// What the kernel refused.
pub(super) fn refused(step: &str, path: &[u8], errno: Errno) -> Trouble {
    let message = format!("cannot {step}: {errno}");
    Trouble::Failed(Box::new(FileFailure {
        kind: kind(errno),
        errno: Some(errno.raw_os_error()),
        path: FilePath::try_from(path.to_vec()).ok(),
        message,
    }))
}

/// Returns what an errno means for the host.
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
