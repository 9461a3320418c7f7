//! The file systems that an init system finds: what makes the mount and control group namespaces of a
//! new process its own. Runs in that process between clone and exec, on the agent's memory, so it only
//! makes system calls. May not change anything outside of the new namespaces.
//!
//! This follows systemd's container interface (systemd.io/CONTAINER_INTERFACE). `/run` is not new: it is
//! the machine's, a directory of the disk in a container image, with the agent's tmpfs below it.
//!
//! | path | what it is |
//! |---|---|
//! | `/dev` | a tmpfs with the six devices of the OCI specification, and the machine's `/dev/pts` and `/dev/shm`; `/dev/console` is the terminal of the process, if it has one |
//! | `/proc` | the processes of the new PID namespace |
//! | `/sys` | read-only, so that no program takes the devices of the machine for its own |
//! | `/sys/fs/cgroup` | the control groups below the one of the init, writable |

use std::ffi::{CStr, c_char, c_int, c_ulong};
use std::ptr;

const NO_SUID_DEV_EXEC: c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Where `/dev` is built, since it needs what is in the old one.
const STAGE: &CStr = c"/sys/fs/cgroup";

/// Device nodes: path on the stage, major and minor number.
const DEVICES: [(&CStr, u32, u32); 6] = [
    (c"/sys/fs/cgroup/null", 1, 3),
    (c"/sys/fs/cgroup/zero", 1, 5),
    (c"/sys/fs/cgroup/full", 1, 7),
    (c"/sys/fs/cgroup/random", 1, 8),
    (c"/sys/fs/cgroup/urandom", 1, 9),
    (c"/sys/fs/cgroup/tty", 5, 0),
];

/// Symbolic links: target, and path on the stage.
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"/sys/fs/cgroup/fd"),
    (c"/proc/self/fd/0", c"/sys/fs/cgroup/stdin"),
    (c"/proc/self/fd/1", c"/sys/fs/cgroup/stdout"),
    (c"/proc/self/fd/2", c"/sys/fs/cgroup/stderr"),
    (c"pts/ptmx", c"/sys/fs/cgroup/ptmx"),
];

/// Moves the process into new mount and control group namespaces and fills them. `has_terminal` says
/// whether its stdin is a terminal. Returns false on an error, with errno set.
pub(super) fn make(has_terminal: bool) -> bool {
    // SAFETY: no memory involved. The process has its own root and working directory since the clone.
    if unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP) } < 0 {
        return false;
    }
    // Private first, so that nothing reaches the agent's mounts; shared among the namespaces that the
    // init makes, since it relies on that.
    mount(c"none", c"/", None, libc::MS_PRIVATE | libc::MS_REC, None)
        && unmount(STAGE)
        && mount(c"dev", STAGE, Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NOEXEC, Some(c"mode=755,size=64k"))
        && fill_dev(has_terminal)
        && unmount(c"/dev")
        && mount(STAGE, c"/dev", None, libc::MS_MOVE, None)
        && mount(c"cgroup2", c"/sys/fs/cgroup", Some(c"cgroup2"), NO_SUID_DEV_EXEC, None)
        && mount(c"none", c"/sys", None, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | NO_SUID_DEV_EXEC, None)
        && unmount(c"/proc")
        && mount(c"proc", c"/proc", Some(c"proc"), NO_SUID_DEV_EXEC, None)
        && mount(c"none", c"/", None, libc::MS_SHARED | libc::MS_REC, None)
}

/// Enters the mount and control group namespaces of the init. Returns false on an error, with errno set.
pub(super) fn enter(init: c_int) -> bool {
    // SAFETY: no memory involved. The process has its own root and working directory since the clone.
    unsafe { libc::setns(init, libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP) == 0 }
}

fn fill_dev(has_terminal: bool) -> bool {
    // SAFETY: no memory involved.
    let mask = unsafe { libc::umask(0) };
    let made = DEVICES.iter().all(|(path, major, minor)| {
        // SAFETY: a NUL-terminated string.
        unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(*major, *minor)) == 0 }
    });
    // SAFETY: no memory involved.
    unsafe { libc::umask(mask) };
    made && LINKS.iter().all(|(target, path)| {
        // SAFETY: NUL-terminated strings.
        unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) == 0 }
    }) && (!has_terminal || bind_console())
        && move_into(c"/dev/pts", c"/sys/fs/cgroup/pts")
        && move_into(c"/dev/shm", c"/sys/fs/cgroup/shm")
}

/// Makes the terminal on stdin `/dev/console`.
fn bind_console() -> bool {
    const CONSOLE: &CStr = c"/sys/fs/cgroup/console";
    // A mount of the namespace is found by its name only, not through the descriptor. There is room for
    // `/dev/pts/` and a number, and for the NUL.
    let mut name = [0u8; 64];
    let (buffer, room) = (name.as_mut_ptr().cast::<c_char>(), name.len() - 1);
    // SAFETY: writes at most `room` bytes to the buffer.
    let length = unsafe { libc::readlink(c"/proc/self/fd/0".as_ptr(), buffer, room) };
    if length <= 0 {
        return false;
    }
    // SAFETY: a NUL-terminated string, and a mode.
    let file = unsafe { libc::open(CONSOLE.as_ptr(), libc::O_CREAT | libc::O_CLOEXEC | libc::O_RDONLY, 0o600) };
    // SAFETY: closed once, and nothing else has this number.
    if file < 0 || unsafe { libc::close(file) } < 0 {
        return false;
    }
    // The last byte was never written.
    let Ok(name) = CStr::from_bytes_until_nul(&name) else { return false };
    mount(name, CONSOLE, None, libc::MS_BIND, None)
}

fn move_into(mounted: &CStr, target: &CStr) -> bool {
    // SAFETY: a NUL-terminated string.
    unsafe { libc::mkdir(target.as_ptr(), 0o755) == 0 && mount(mounted, target, None, libc::MS_MOVE, None) }
}

fn mount(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: c_ulong, data: Option<&CStr>) -> bool {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null, where mount(2) permits it, or to a NUL-terminated string.
    unsafe { libc::mount(source.as_ptr(), target.as_ptr(), pointer(kind), flags, pointer(data).cast()) == 0 }
}

fn unmount(target: &CStr) -> bool {
    // SAFETY: a NUL-terminated string.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) == 0 }
}
