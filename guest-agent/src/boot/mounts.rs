//! Builds the file systems of the sandbox: from three disks to the root that processes see.
//!
//! ```text
//! vda  EROFS  the agent's disk: /sbin/init and empty mount points; detached at the end
//! vdb  EROFS  the image                      -> /lower   \
//! vdc  ext4   this sandbox's changes         -> /rw       > overlay -> /newroot -> /
//! ```
//! After [`enter_root`] the agent's disk and the layers of the overlay are in no mount tree, so
//! processes cannot name them. The agent keeps a descriptor of the upper directory, from which it
//! packs the changes of the disk. (Root of the guest can mount the disks again by their devices. The
//! agent's disk is read-only in the VMM.)

use rustix::fs::{Access, Mode, OFlags, access, mkdir, open, symlink};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, mount_remount, unmount};
use rustix::process::{chdir, pivot_root};
use std::ffi::CStr;
use std::io::Read;
use std::os::fd::OwnedFd;

/// Why a file system cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// mount(2) failed.
    #[error("boot: cannot mount {what} on {target}: {errno}; {hint}")]
    Mount {
        /// Source or file system type.
        what: &'static str,
        /// The mount point.
        target: &'static str,
        /// The error of the kernel.
        errno: Errno,
        /// What to check.
        hint: &'static str,
    },
    /// A directory for a mount cannot be created.
    #[error("boot: cannot make {path}: {errno}; the writable disk may be full or read-only")]
    Directory {
        /// The directory.
        path: &'static str,
        /// The error of the kernel.
        errno: Errno,
    },
    /// The root cannot be changed.
    #[error("boot: cannot make the overlay the root ({step}): {errno}")]
    Pivot {
        /// The call that failed.
        step: &'static str,
        /// The error of the kernel.
        errno: Errno,
    },
}

/// One mount(2) call.
struct Mount {
    source: &'static str,
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
    hint: &'static str,
}

const NOTHING: MountFlags = MountFlags::empty();
const NO_SUID_DEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NO_SUID_DEV_EXEC: MountFlags = NO_SUID_DEV.union(MountFlags::NOEXEC);
const KERNEL_HINT: &str = "is it in the guest kernel's configuration?";

const DEV: Mount =
    Mount { source: "dev", target: "/dev", kind: "devtmpfs", flags: NOTHING, data: None, hint: KERNEL_HINT };

const LAYERS: [Mount; 2] = [
    Mount {
        source: "/dev/vdb",
        target: "/lower",
        kind: "erofs",
        flags: MountFlags::RDONLY,
        data: None,
        hint: "the second disk must be an EROFS image",
    },
    Mount {
        source: "/dev/vdc",
        target: "/rw",
        kind: "ext4",
        flags: MountFlags::NOATIME,
        data: None,
        hint: "the third disk must be a writable ext4 file system",
    },
];

const OVERLAY: Mount = Mount {
    source: "sandbox",
    target: "/newroot",
    kind: "overlay",
    flags: MountFlags::NOATIME,
    data: Some(c"lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work"),
    hint: "upper and work directory must be on one writable file system",
};

/// File systems in the new root, in the order in which they are mounted. `/tmp` is deliberately
/// missing: it stays on the sandbox's disk, which has more room than the guest's memory.
const KERNEL_FILESYSTEMS: [Mount; 5] = [
    Mount { source: "proc", target: "/proc", kind: "proc", flags: NO_SUID_DEV_EXEC, data: None, hint: KERNEL_HINT },
    Mount { source: "sysfs", target: "/sys", kind: "sysfs", flags: NO_SUID_DEV_EXEC, data: None, hint: KERNEL_HINT },
    Mount {
        source: "cgroup2",
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: NO_SUID_DEV_EXEC,
        data: None,
        hint: KERNEL_HINT,
    },
    Mount {
        source: "devpts",
        target: "/dev/pts",
        kind: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: Some(c"newinstance,gid=5,mode=620,ptmxmode=666"),
        hint: KERNEL_HINT,
    },
    Mount {
        source: "shm",
        target: "/dev/shm",
        kind: "tmpfs",
        flags: NO_SUID_DEV,
        data: Some(c"mode=1777"),
        hint: KERNEL_HINT,
    },
];

/// The file system in memory for what the machine itself keeps in `/run`.
const RUN: Mount = Mount {
    source: "run",
    target: "/run",
    kind: "tmpfs",
    flags: NO_SUID_DEV,
    data: Some(c"mode=755"),
    hint: KERNEL_HINT,
};

/// Where [`RUN`] is mounted for a container image, whose `/run` is a directory of its disk.
pub(super) const AGENTS_RUN: &str = "/run/sandboxvm";

/// Names in `/dev` that programs expect and devtmpfs does not provide.
const DEV_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Makes sure that `/dev` is populated. A kernel with DEVTMPFS_MOUNT has done that.
pub(super) fn ensure_dev() -> Result<(), MountError> {
    if access("/dev/null", Access::EXISTS).is_ok() { Ok(()) } else { do_mount(&DEV) }
}

/// Builds the sandbox's root from the disks, moves `/dev` into it and makes it the root. Returns the
/// overlay's upper directory, opened with `O_PATH`.
pub(super) fn enter_root() -> Result<OwnedFd, MountError> {
    for layer in &LAYERS {
        do_mount(layer)?;
    }
    make_directory("/rw/upper", 0o755)?;
    make_directory("/rw/work", 0o700)?;
    do_mount(&OVERLAY)?;
    move_dev()?;
    let pivot = |step| move |errno| MountError::Pivot { step, errno };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = open("/rw/upper", flags, Mode::empty()).map_err(pivot("open its upper directory"))?;
    chdir("/newroot").map_err(pivot("chdir to it"))?;
    // Both are ".": the old root is put over the new one and then detached, so it needs no
    // directory (pivot_root(2), NOTES).
    pivot_root(".", ".").map_err(pivot("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(pivot("detach the old root"))?;
    chdir("/").map_err(pivot("chdir to /"))?;
    Ok(upper)
}

/// Mounts the file systems of the kernel in the sandbox's root.
pub(super) fn mount_kernel_filesystems() -> Result<(), MountError> {
    for filesystem in &KERNEL_FILESYSTEMS {
        mount_making_target(filesystem)?;
    }
    for (content, link) in DEV_LINKS {
        match symlink(content, link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(MountError::Directory { path: link, errno }),
        }
    }
    // An image with one static program has no `/etc`, and the machine's names are files there.
    make_directory("/etc", 0o755)
}

/// Mounts a file system in memory for `/run`, or, if `/run` is a directory of the disk, only for
/// the agent's directory in it. Container images and their builds have files in `/run`, which other
/// engines keep.
pub(super) fn mount_run(on_disk: bool) -> Result<(), MountError> {
    if !on_disk {
        mount_making_target(&RUN)?;
        return make_directory("/run/lock", 0o755);
    }
    make_directory("/run", 0o755)?;
    make_directory(AGENTS_RUN, 0o755)?;
    do_mount(&Mount { target: AGENTS_RUN, ..RUN })
}

/// Leaves the writable disk and the volumes as after an unmount. The mount of the disk is in no tree, so this
/// mounts it again, which returns the same file system, and makes it read-only. Volumes too, wherever they
/// are mounted. Processes must have ended before.
pub(crate) fn seal_writable_disks() {
    rustix::fs::sync();
    if let Err(errno) = seal("/dev/vdc") {
        eprintln!("sandboxvm-agent: shutdown: the writable disk is synced but stays marked as in use: {errno}");
    }
    for disk in std::fs::File::open("/proc/self/mounts").map(writable_volumes).unwrap_or_default() {
        if let Err(errno) = seal(&disk) {
            eprintln!("sandboxvm-agent: shutdown: the volume {disk} is synced but stays marked as in use: {errno}");
        }
    }
}

fn seal(disk: &str) -> Result<(), Errno> {
    const TARGET: &str = "/run";
    mount(disk, TARGET, "ext4", MountFlags::NOATIME, None)?;
    mount_remount(TARGET, MountFlags::RDONLY, c"")
}

/// Returns the devices of the volumes that are mounted writable, from a list in the form of `/proc/mounts`.
fn writable_volumes(list: impl Read) -> Vec<String> {
    /// Maximum size of the list of mounts that is read, in bytes.
    const MAX: u64 = 1 << 20;
    let mut mounts = Vec::new();
    // What was read before an error, or before the end of a list that is too long, counts.
    let _ = list.take(MAX).read_to_end(&mut mounts);
    // Paths need not be UTF-8. Those of devices are.
    let mounts = String::from_utf8_lossy(&mounts);
    let mut disks: Vec<String> = mounts.lines().filter_map(writable_volume).map(str::to_owned).collect();
    disks.sort();
    disks.dedup();
    disks
}

/// Returns the device in a line of `/proc/mounts`, if it is a writable volume.
fn writable_volume(line: &str) -> Option<&str> {
    let mut words = line.split(' ');
    let (device, _, kind, options) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let is_volume = device.starts_with("/dev/vd") && kind == "ext4";
    (is_volume && options.split(',').next() == Some("rw")).then_some(device)
}

fn move_dev() -> Result<(), MountError> {
    let moved = match mount_move("/dev", "/newroot/dev") {
        Err(Errno::NOENT) => {
            make_directory("/newroot/dev", 0o755)?;
            mount_move("/dev", "/newroot/dev")
        }
        moved => moved,
    };
    moved.map_err(|errno| MountError::Mount {
        what: "/dev",
        target: "/newroot/dev",
        errno,
        hint: "the image's /dev must be a directory",
    })
}

/// Mounts a file system. devtmpfs lacks two mount points. An image may lack others, but most images
/// have them.
fn mount_making_target(filesystem: &Mount) -> Result<(), MountError> {
    if filesystem.target.starts_with("/dev/") {
        make_directory(filesystem.target, 0o755)?;
    }
    match do_mount(filesystem) {
        Err(MountError::Mount { errno: Errno::NOENT, .. }) => {
            make_directory(filesystem.target, 0o755)?;
            do_mount(filesystem)
        }
        mounted => mounted,
    }
}

fn do_mount(Mount { source, target, kind, flags, data, hint }: &Mount) -> Result<(), MountError> {
    mount(*source, *target, *kind, *flags, *data).map_err(|errno| MountError::Mount {
        what: source,
        target,
        errno,
        hint,
    })
}

fn make_directory(path: &'static str, mode: u32) -> Result<(), MountError> {
    match mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(MountError::Directory { path, errno }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_volumes_are_found_whatever_else_is_mounted() {
        let list = b"/dev/vdb /lower erofs ro 0 0\n/dev/vdd /caf\xe9 ext4 rw,nodev 0 0\n/dev/vde /ro ext4 ro 0 0\n\
            tmpfs /x tmpfs rw 0 0\n/dev/vdd /again ext4 rw 0 0\n/dev/vdf /data ext4 rw,noatime 0 0\n";
        assert_eq!(writable_volumes(&list[..]), ["/dev/vdd", "/dev/vdf"]);
        // The list is cut within a character.
        for padding in ["", " "] {
            let long = [&list[..], padding.as_bytes(), "\u{e9}".repeat(1 << 20).as_bytes()].concat();
            assert_eq!(writable_volumes(&long[..]), ["/dev/vdd", "/dev/vdf"]);
        }
    }
}
