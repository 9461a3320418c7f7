//! Separate namespaces, and an empty root in place of the host's files.

use super::{
    error::{ConfineError, failed},
    switches::{Protection, is_off},
};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount},
    process::{chdir, fchdir, pivot_root},
    thread::{UnshareFlags, unshare_unsafe},
};
use sandboxvm_protocol::vmm::JailPart;

/// Where the empty root is built before it becomes the root: any directory that always exists.
const STAGE: &str = "/tmp";

/// All but the user namespace. A PID namespace is left out: see `docs/threat-model.md`, "What is not used, and why".
fn namespaces() -> UnshareFlags {
    let mut all = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    all.set(UnshareFlags::NEWNS, !is_off(Protection::Mount));
    all.set(UnshareFlags::NEWNET, !is_off(Protection::Network));
    all
}

/// Leaves the host's mounts, network, IPC objects, host name and control groups. The root is an empty, read-only tmpfs
/// afterwards. For root, whose namespaces then belong to the host's user namespace: nothing that this process could ever
/// become gives it a say in them.
pub(super) fn leave_the_host() -> Result<(), ConfineError> {
    unshare(namespaces()).map_err(failed("leaving the host's namespaces"))?;
    if is_off(Protection::Mount) {
        return Ok(());
    }
    stage_root().map_err(failed(
        "making an empty root (in a chroot its root must be a mount point: bind it on itself first)",
    ))?;
    enter_root()
}

/// The same for an ordinary user, by way of a user namespace, as far as the host allows it. Returns what it does not.
pub(super) fn leave_the_host_unprivileged() -> Result<Vec<JailPart>, ConfineError> {
    if unshare(UnshareFlags::NEWUSER).is_err() {
        return Ok(vec![JailPart::UserNamespace, JailPart::Namespaces, JailPart::EmptyRoot]);
    }
    // Some hosts give user namespaces and take away what could be done in them.
    if unshare(namespaces()).is_err() {
        return Ok(vec![JailPart::Namespaces, JailPart::EmptyRoot]);
    }
    if is_off(Protection::Mount) {
        return Ok(Vec::new());
    }
    if stage_root().is_err() {
        return Ok(vec![JailPart::EmptyRoot]);
    }
    enter_root()?;
    Ok(Vec::new())
}

/// Enters a user namespace that maps no user or group of the host, so that no privilege is worth anything and no file can be
/// owned by its users. Returns false where the host does not allow it.
pub(super) fn own_users() -> bool {
    unshare(UnshareFlags::NEWUSER).is_ok()
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: none of these flags unshares the file table (CLONE_FILES), so no descriptor changes meaning.
    unsafe { unshare_unsafe(flags) }
}

fn stage_root() -> Result<(), Errno> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sandboxvm", STAGE, "tmpfs", flags, Some(c"size=4k,nr_inodes=2,mode=0555"))
}

fn enter_root() -> Result<(), ConfineError> {
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
