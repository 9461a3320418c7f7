//! Mounts a workspace: an overlay whose lower directories are EROFS images in slots, and whose upper
//! directory is on the sandbox's disk, beside that of the root. May not touch what processes see
//! except the directory at which the workspace appears.
//!
//! ```text
//! /dev/vdd, vde, ...  EROFS, bottom up            \\
//! /dev/vdc            ext4: workspaces/N/{upper,work} > overlay -> the directory
//! ```
//! N is the lowest slot. Everything is mounted in a mount namespace of this process, which ends with
//! it: the overlay keeps what it needs, and the disks are in no mount tree that a process of the
//! sandbox has. A workspace that is mounted again, also after a boot, has its changes.

use super::mounted::is_mounted;
use crate::files::failure::{Trouble, failure, refused};
use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags, Uid, chownat, flock, mkdir, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount, open_tree,
};
use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileReply, FileTotals};
use sandboxvm_protocol::agent::workspace::WorkspaceMount;
use sandboxvm_protocol::machine::SlotNumber;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// Letter of the disk in slot 0. The disks before it are the agent's, the image and the writable one.
const FIRST_DISK: u8 = b'd';
/// Where this process mounts its file systems, hidden by a file system in memory.
const PLACE: &str = "/run";

/// Returns the path of a workspace's upper directory, relative to that of the root's overlay.
pub(in crate::files) fn upper_beside_root(lowest: SlotNumber) -> String {
    format!("../workspaces/{lowest}/upper")
}

/// Returns the name that a workspace has in the list of mounts.
fn source(lowest: SlotNumber) -> String {
    format!("workspace{lowest}")
}

/// Mounts the workspace, unless it is mounted.
pub(in crate::files) fn mount_workspace(request: &WorkspaceMount) -> Result<FileReply, Trouble> {
    let bad = |message: &str| Err(failure(FileErrorKind::BadRequest, None, message.to_owned()));
    if !geteuid().is_root() {
        let message = "cannot mount a workspace: only root may do that".to_owned();
        return Err(failure(FileErrorKind::PermissionDenied, None, message));
    }
    let at = request.at.as_bytes();
    let Some(lowest) = request.slots.first() else { return bad("a workspace needs a slot") };
    if !at.starts_with(b"/") || at == b"/" {
        return bad("the path of a workspace must be absolute, and not that of the root");
    }
    // Of two requests at the same time, the second finds the workspace mounted.
    let _lock = lock(*lowest).map_err(|errno| refused("lock the slot of the workspace", at, errno))?;
    let mounted = format!(" - overlay {} ", source(*lowest));
    if is_mounted(&mounted).map_err(|errno| refused("read the list of mounts", at, errno))? {
        return Ok(FileReply::Done(FileTotals::default()));
    }
    let (step, result) = in_own_namespace(request, *lowest);
    let tree = result.map_err(|errno| refused(step, at, errno))?;
    make_mount_point(request).map_err(|errno| refused("make the directory of the workspace", at, errno))?;
    move_mount(&tree, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| refused("mount the workspace", at, errno))?;
    Ok(FileReply::Done(FileTotals::default()))
}

fn device(slot: SlotNumber) -> String {
    format!("/dev/vd{}", char::from(FIRST_DISK + slot.get()))
}

/// Waits until no other request mounts the workspace. The slot is opened, and not read.
fn lock(lowest: SlotNumber) -> Result<OwnedFd, Errno> {
    let slot = open(device(lowest), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    flock(&slot, FlockOperation::LockExclusive)?;
    Ok(slot)
}

/// Builds the overlay in a new mount namespace and returns to the old one. Returns the step that was
/// last begun, and the overlay, which is in no mount tree.
fn in_own_namespace(request: &WorkspaceMount, lowest: SlotNumber) -> (&'static str, Result<OwnedFd, Errno>) {
    let mut step = "open the mount namespace";
    let result = (|| {
        let old = open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        step = "create a mount namespace";
        // SAFETY: only the mount namespace changes, and this process has one thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::PERM));
        }
        let tree = build(request, lowest, &mut step);
        // Also after a failure: the reply needs nothing of it, but later code may.
        move_into_link_name_space(old.as_fd(), Some(LinkNameSpaceType::Mount))?;
        tree
    })();
    (step, result)
}

fn build(request: &WorkspaceMount, lowest: SlotNumber, step: &mut &'static str) -> Result<OwnedFd, Errno> {
    *step = "make the mounts private";
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("workspace", PLACE, "tmpfs", MountFlags::empty(), c"mode=700")?;
    *step = "mount the writable disk";
    let disk = directory("disk")?;
    mount("/dev/vdc", &disk, "ext4", MountFlags::NOATIME, None)?;
    *step = "make directories on the disk";
    make_directory(&format!("{disk}/workspaces"), 0o700)?;
    let own = format!("{disk}/workspaces/{lowest}");
    make_directory(&own, 0o700)?;
    let (upper, work) = (format!("{own}/upper"), format!("{own}/work"));
    if make_directory(&upper, 0o755)? {
        let (owner, group) = (Uid::from_raw(request.uid), Gid::from_raw(request.gid));
        chownat(CWD, &upper, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    make_directory(&work, 0o700)?;
    *step = "mount a slot";
    let mut lower = Vec::with_capacity(request.slots.len());
    for slot in &request.slots {
        let target = directory(&format!("slot{slot}"))?;
        mount(device(*slot), &target, "erofs", MountFlags::RDONLY, None)?;
        lower.push(target);
    }
    // The uppermost comes first.
    lower.reverse();
    *step = "mount the overlay";
    let merged = directory("merged")?;
    let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    mount(source(lowest), &merged, "overlay", MountFlags::NOATIME, options.as_c_str())?;
    *step = "take the overlay";
    open_tree(CWD, &merged, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// Creates a directory to mount on.
fn directory(name: &str) -> Result<String, Errno> {
    let path = format!("{PLACE}/{name}");
    make_directory(&path, 0o700)?;
    Ok(path)
}

/// Returns true if the directory is new.
fn make_directory(path: &str, mode: u32) -> Result<bool, Errno> {
    match mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Creates the directory of the workspace and the missing ones above it, which belong to root.
fn make_mount_point(request: &WorkspaceMount) -> Result<(), Errno> {
    let at = request.at.as_bytes();
    let ends = (1..at.len()).filter(|end| at[*end] == b'/').chain([at.len()]);
    let mut is_new = false;
    for end in ends {
        is_new = match mkdir(&at[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno),
        };
    }
    if is_new {
        let (owner, group) = (Uid::from_raw(request.uid), Gid::from_raw(request.gid));
        chownat(CWD, at, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
