//! Why a share was not copied.

use rustix::io::Errno;

/// Maximum depth of a tree: each level takes two descriptors.
pub(super) const MAX_DEPTH: usize = 1024;

/// Why a share was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Too many bytes of files would have to be written.
    #[error("its files have more than the {0} bytes that a copy may take")]
    Bytes(u64),
    /// It contains too much.
    #[error("it has more than {0} files and directories")]
    Names(u64),
    /// Its directories lie too deep in each other.
    #[error("it has more than {} levels of directories", MAX_DEPTH)]
    Depth,
    /// A file cannot be copied.
    #[error("cannot copy {path:?}: {source}")]
    File {
        /// The path of the file in the share.
        path: String,
        /// The system's error.
        source: Errno,
    },
    /// The target cannot be written.
    #[error("cannot write the copy: {0}")]
    Target(#[from] Errno),
}
