//! The root file system without what is mounted over its files, for a process that writes files of
//! the disk. May only be used by a process that ends with its request: it changes the root.

use crate::files::failure::{Trouble, failure, refused};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{chdir, chroot, fchdir, geteuid};
use sandboxvm_protocol::agent::files::FileErrorKind;

/// Makes a copy of the root's mount the root of this process. Mounts below it are not copied.
pub(in crate::files) fn enter() -> Result<(), Trouble> {
    if !geteuid().is_root() {
        let message = "cannot extract below mounts: only root may do that".to_owned();
        return Err(failure(FileErrorKind::PermissionDenied, None, message));
    }
    let entered = || -> Result<(), Errno> {
        // Without AT_RECURSIVE, the mounts below are not part of the copy (open_tree(2)).
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root = open_tree(CWD, "/", flags)?;
        fchdir(&root)?;
        chroot(".")?;
        chdir("/")
    };
    entered().map_err(|errno| refused("open the disk below the mounts of", b"/", errno))
}
