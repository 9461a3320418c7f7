//! What the process keeps: the shared root in an otherwise empty mount namespace, its connection, and the
//! calls that serving needs.

use crate::limits::DESCRIPTORS;
use rustix::{
    fs::{Mode, fstat},
    process::{geteuid, umask},
};
use sandboxvm_confine::{Argument, Confinement, Content, Filter, Network, Part, Resource, User};
use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

pub use sandboxvm_confine::{ConfineError, Missing, close_inherited_files};

/// Memory in bytes: the nodes of a guest that looks up as many files as it may, threads and the program.
const MEMORY: u64 = 1 << 30;
/// Added to its score when memory is short (oom_score_adj of proc(5)): the supervisor replaces it.
const ENDS_FIRST: u16 = 600;

const ROOT: &str = "content";
const TARGET: &str = "target";
/// Makes a file share the blocks of another one, as ioctl_ficlone(2).
const FICLONE: u64 = 0x4004_9409;

/// The process must not serve.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// A step failed.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The root cannot be examined.
    #[error("cannot examine the root of the share: {0}")]
    Root(#[from] rustix::io::Errno),
    /// The host refuses a part without which files of the host would be in reach.
    #[error("cannot confine the process of the share: it {0}")]
    Missing(Missing),
}

/// What a process does with its root.
#[derive(Debug, Clone, Copy)]
pub enum Use<'a> {
    /// It serves the root, or a copy in it.
    Share {
        /// Refuse all changes.
        read_only: bool,
    },
    /// It changes a volume, which other processes change at the same time.
    Volume,
    /// It copies the root into this directory, and is its only other file of the host, at [`target`].
    Source(BorrowedFd<'a>),
}

/// Confines this process, which must have one thread: `root`, a descriptor of a file or directory
/// (O_PATH), is all that it sees of the host's files, as [`path`], beside the target of a copy. A process of root
/// becomes the owner of the root, without a capability. Processes of a volume exclude each other by locks.
///
/// # Errors
/// Every [`ConfinementError`]. The process must not serve then.
pub fn confine(root: BorrowedFd<'_>, used: Use<'_>) -> Result<(), ConfinementError> {
    let stat = fstat(root)?;
    let users = [User { uid: stat.st_uid, gid: stat.st_gid }];
    let is_root = geteuid().is_root();
    // Requests state the exact modes of files.
    umask(Mode::empty());
    let limits = [(Resource::As, MEMORY), (Resource::Nofile, DESCRIPTORS)];
    let read_only = matches!(used, Use::Source(_) | Use::Share { read_only: true });
    let mut contents = vec![Content { file: root, read_only, name: ROOT }];
    let filter = match used {
        Use::Share { .. } => calls(),
        Use::Volume => calls().allow(&[libc::SYS_flock]),
        Use::Source(file) => {
            contents.push(Content { file, read_only: false, name: TARGET });
            let clone = Argument::has(1, Argument::INT, FICLONE);
            calls().allow(&[libc::SYS_copy_file_range]).allow_if(libc::SYS_ioctl, &[clone])
        }
    };
    let missing = Confinement {
        process: "process of the share",
        users: &users,
        namespaces: Some(Network::Empty),
        contents: &contents,
        limits: &limits,
        // Its user may have other processes, which count as well.
        threads: u64::MAX,
        ends_first: ENDS_FIRST,
        filter: &filter,
    }
    .apply()?;
    let is_needed = |part: Part| matches!(part, Part::Namespaces | Part::EmptyRoot) || is_root && part == Part::OwnUser;
    match missing.into_iter().find(|missing| is_needed(missing.part)) {
        Some(missing) => Err(ConfinementError::Missing(missing)),
        None => Ok(()),
    }
}

/// Returns the path of the root in the confined process.
#[must_use]
pub fn path() -> PathBuf {
    Path::new("/").join(ROOT)
}

/// Returns the path of the target of a copy in the confined process.
#[must_use]
pub fn target() -> PathBuf {
    Path::new("/").join(TARGET)
}

fn calls() -> Filter {
    let privileges = 0o6000;
    Filter::new()
        .allow_threads()
        .allow(&[
            libc::SYS_geteuid,
            libc::SYS_getegid,
            libc::SYS_openat2,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_fstatfs,
            libc::SYS_faccessat2,
            libc::SYS_readlinkat,
            libc::SYS_symlinkat,
            libc::SYS_linkat,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_utimensat,
            libc::SYS_ftruncate,
            libc::SYS_fallocate,
            libc::SYS_lseek,
            libc::SYS_getdents64,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_fgetxattr,
            libc::SYS_fsetxattr,
            libc::SYS_flistxattr,
            libc::SYS_fremovexattr,
            libc::SYS_shutdown,
            libc::SYS_recvfrom,
        ])
        // How the standard library writes to a socket without a signal.
        .allow_if(libc::SYS_sendto, &[Argument::is_all_of(4, 0)])
        // No set-user-ID and set-group-ID bits.
        .allow_if(libc::SYS_mkdirat, &[Argument::lacks(2, privileges)])
        .allow_if(libc::SYS_fchmod, &[Argument::lacks(1, privileges)])
        .allow_if(libc::SYS_fchmodat, &[Argument::lacks(2, privileges)])
        .allow_if(libc::SYS_fchmodat2, &[Argument::lacks(2, privileges)])
}
