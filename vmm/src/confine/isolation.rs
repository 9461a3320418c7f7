//! Namespaces, an empty root, and an identity without privileges.

use super::{ConfineError, step};
use rustix::{
    fs::CWD,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount},
    process::{chdir, fchdir, pivot_root},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::io;

/// User and group of a VMM started by root. Not `nobody`: NFS and others use that one.
const VMM_ID: u32 = 64_738;

/// Where the empty root is built before it becomes the root: any directory that always exists.
const STAGE: &str = "/tmp";

/// Leaves the host's mounts, network, IPC objects and host name. The root is an empty, read-only tmpfs afterwards.
pub(super) fn leave_the_host() -> Result<(), ConfineError> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: none of these flags unshares the file table (CLONE_FILES), so no descriptor changes meaning.
    unsafe { unshare_unsafe(flags) }.map_err(failed("leaving the host's namespaces"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(failed(
        "making mounts private (in a chroot its root must be a mount point: bind it on itself first)",
    ))?;
    mount(
        "sandboxvm",
        STAGE,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        Some(c"size=4k,nr_inodes=2,mode=0555"),
    )
    .map_err(failed("making an empty root"))?;
    let old =
        rustix::fs::openat(CWD, "/", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .map_err(failed("opening the host's root"))?;
    chdir(STAGE).map_err(failed("entering the empty root"))?;
    // pivot_root(".", ".") stacks the old root on the new one, from where it is taken away (pivot_root(2), NOTES).
    pivot_root(".", ".").map_err(failed("changing the root"))?;
    fchdir(&old).map_err(failed("leaving the host's root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("taking the host's root away"))?;
    chdir("/").map_err(failed("entering the new root"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount("/", flags, "").map_err(failed("making the empty root read-only"))
}

fn failed(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> ConfineError {
    move |error| step(what)(error.into())
}

/// Takes an ordinary user's identity. Capabilities go with the change of user.
pub(super) fn become_nobody() -> Result<(), ConfineError> {
    // SAFETY: no pointers but an empty list.
    checked(unsafe { libc::setgroups(0, std::ptr::null()) }, "giving up groups")?;
    // SAFETY: plain numbers.
    checked(unsafe { libc::setresgid(VMM_ID, VMM_ID, VMM_ID) }, "giving up the group root")?;
    // SAFETY: plain numbers.
    checked(unsafe { libc::setresuid(VMM_ID, VMM_ID, VMM_ID) }, "giving up the user root")
}

/// From here on no program this process could execute has more privileges than it has.
pub(super) fn no_new_privileges() -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(failed("giving up new privileges"))
}

fn checked(result: libc::c_int, what: &'static str) -> Result<(), ConfineError> {
    if result == 0 { Ok(()) } else { Err(step(what)(io::Error::last_os_error())) }
}
