//! Separate namespaces, and an empty root in place of the host's files, or one with a single file or directory of them.

use crate::outcome::{Missing, Part, Step, failed};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, mkdir, open, openat, readlinkat, statat},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
        mount_remount, move_mount, open_tree, unmount,
    },
    process::{chdir, fchdir, getegid, geteuid, pivot_root},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    fs,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// The network of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// None. Sockets that it has already keep working.
    Empty,
    /// The host's.
    OfHost,
}

/// A file or directory of the host that stays visible, in the root and without what is mounted below it. It has no
/// device, no program and no set-user-ID file that counts.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// The file or directory, by a descriptor that names it (O_PATH).
    pub file: BorrowedFd<'a>,
    /// Refuse all changes.
    pub read_only: bool,
    /// Its name in the otherwise empty root.
    pub name: &'static str,
}

/// Where the empty root is built before it becomes the root: any directory that always exists.
const STAGE: &str = "/tmp";

/// Leaves the host's mounts, IPC objects, host name and control groups, and its network if it is not to be kept. The root
/// is an empty, read-only directory afterwards, except for `contents`. An ordinary user does so in a user namespace. Returns
/// what the host refuses, as in a container.
pub(super) fn leave_the_host(
    network: Network,
    contents: &[Content<'_>],
    is_root: bool,
) -> Result<Option<Missing>, Step> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    namespaces.set(UnshareFlags::NEWNET, network == Network::Empty);
    let missing = |part, error: Errno| Some(Missing { part, error: error.into() });
    // Some hosts give user namespaces, and refuse what could be done in them.
    let unshared = if is_root { Ok(()) } else { unshare(UnshareFlags::NEWUSER) }.and_then(|()| unshare(namespaces));
    if let Err(error) = unshared {
        return Ok(missing(Part::Namespaces, error));
    }
    if !is_root && !contents.is_empty() {
        // Without them, owners of files could not be distinguished, and everything else works.
        let _ = keep_ids(user, group);
    }
    if let Err(error) = stage_root(contents) {
        return Ok(missing(Part::EmptyRoot, error));
    }
    enter_root().map(|()| None)
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: none of these flags unshares the file table (CLONE_FILES), so no descriptor changes meaning.
    unsafe { unshare_unsafe(flags) }
}

/// Maps the own user and group of a new user namespace to themselves.
fn keep_ids(user: u32, group: u32) -> std::io::Result<()> {
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

fn stage_root(contents: &[Content<'_>]) -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // First, since it may be below the stage.
    let trees = contents.iter().map(|content| Ok((content, take_content(content)?)));
    let trees = trees.collect::<Result<Vec<_>, Errno>>()?;
    let all = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sandboxvm", STAGE, "tmpfs", all, Some(c"size=4k,nr_inodes=4,mode=0555"))?;
    for (content, tree) in trees {
        let staged = format!("{STAGE}/{}", content.name);
        if fstat(&tree)?.st_mode & libc::S_IFMT == libc::S_IFDIR {
            mkdir(&*staged, Mode::RWXU)?;
        } else {
            open(&*staged, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR)?;
        }
        move_mount(&tree, c"", CWD, &*staged, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        let mut flags = all | MountFlags::BIND;
        // What a mount of the host refuses stays refused: an ordinary user may not lift that.
        let is_read_only = fstatvfs(&tree)?.f_flag.contains(StatVfsMountFlags::RDONLY);
        flags.set(MountFlags::RDONLY, content.read_only || is_read_only);
        mount_remount(&*staged, flags, c"")?;
    }
    Ok(())
}

/// Takes the mount of the content, without what is mounted below it. Mounts can be taken only by a path of the present mount
/// namespace, so its path is looked up, and what is found there must be the file of the descriptor.
fn take_content(content: &Content<'_>) -> Result<OwnedFd, Errno> {
    let path = readlinkat(CWD, format!("/proc/self/fd/{}", content.file.as_raw_fd()), Vec::new())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = match open_tree(CWD, &path, flags) {
        // A user namespace may not uncover what the host mounted over. The content's user crosses no mount in any case.
        Err(Errno::INVAL) => open_tree(CWD, &path, flags | OpenTreeFlags::AT_RECURSIVE)?,
        taken => taken?,
    };
    let (found, wanted) = (statat(&tree, c"", AtFlags::EMPTY_PATH)?, fstat(content.file)?);
    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) { Ok(tree) } else { Err(Errno::STALE) }
}

fn enter_root() -> Result<(), Step> {
    let old = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed("opening the root"))?;
    chdir(STAGE).map_err(failed("entering the empty root"))?;
    // pivot_root(".", ".") stacks the old root on the new one, from where it is taken away (pivot_root(2), NOTES).
    pivot_root(".", ".").map_err(failed("changing the root"))?;
    fchdir(&old).map_err(failed("leaving the host's root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("taking the host's root away"))?;
    chdir("/").map_err(failed("entering the new root"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount("/", flags, "").map_err(failed("making the empty root read-only"))
}
