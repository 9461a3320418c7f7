//! Separate namespaces, and an empty root in place of the host's files.

use crate::outcome::{Missing, Part, Step, failed};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount},
    process::{chdir, fchdir, pivot_root},
    thread::{UnshareFlags, unshare_unsafe},
};

/// The network of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// None. Sockets that it has already keep working.
    Empty,
    /// The host's.
    OfHost,
}

/// Where the empty root is built before it becomes the root: any directory that always exists.
const STAGE: &str = "/tmp";

/// Leaves the host's mounts, IPC objects, host name and control groups, and its network if it is not to be kept. The root
/// is an empty, read-only directory afterwards. An ordinary user does so in a user namespace. Returns what the host
/// refuses, as in a container.
pub(super) fn leave_the_host(network: Network, is_root: bool) -> Result<Option<Missing>, Step> {
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    namespaces.set(UnshareFlags::NEWNET, network == Network::Empty);
    let missing = |part, error: Errno| Some(Missing { part, error: error.into() });
    // Some hosts give user namespaces, and refuse what could be done in them.
    let unshared = if is_root { Ok(()) } else { unshare(UnshareFlags::NEWUSER) }.and_then(|()| unshare(namespaces));
    if let Err(error) = unshared {
        return Ok(missing(Part::Namespaces, error));
    }
    if let Err(error) = stage_root() {
        return Ok(missing(Part::EmptyRoot, error));
    }
    enter_root().map(|()| None)
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
