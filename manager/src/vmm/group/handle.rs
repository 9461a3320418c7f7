//! An open control group: what it bounds, which processes it has, and their end. Makes no group.

use crate::home::directory::SandboxDirectory;
use rustix::{
    fs::{Mode, OFlags, fstatfs, open, openat, readlinkat},
    process::Pid,
};
use sandboxvm_protocol::machine::{MIB, MemorySize};
use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// The link in a sandbox's directory that leads to its group.
pub(crate) const LINK: &str = "group";
/// Prefix of the names of all groups. Other groups are never ended or removed.
pub(crate) const PREFIX: &str = "sandboxvm-";

/// `CGROUP2_SUPER_MAGIC`, linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// Memory in bytes that a VMM needs besides guest memory.
const OVERHEAD: u64 = 512 * MIB;
/// Maximum number of rounds of killing all processes of a group, if the kernel does not do it in
/// one step.
const ROUNDS: u32 = 1000;
const POLL: Duration = Duration::from_millis(1);

/// An existing control group, open.
#[derive(Debug)]
pub(crate) struct Group {
    fd: OwnedFd,
    path: PathBuf,
}

impl Group {
    /// Returns the group of the sandbox in `directory`. Returns `None` if it has none or if the
    /// group does not exist any more, in which case no process runs in it.
    pub(crate) fn of(directory: &SandboxDirectory) -> Option<Self> {
        Self::at(&target(directory.fd(), LINK)?)
    }

    pub(super) fn at(path: &Path) -> Option<Self> {
        if !is_ours(path) {
            return None;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).ok()?;
        let kind = fstatfs(&fd).ok()?.f_type;
        (u64::try_from(kind) == Ok(CGROUP2)).then(|| Self { fd, path: path.to_owned() })
    }

    /// Returns the descriptor for clone3(2).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Limits the memory of all processes in the group, if it has the controller. The limit is
    /// twice the guest memory plus [`OVERHEAD`], because while a snapshot is written, pages that
    /// the guest rewrites exist twice.
    pub(crate) fn bound_memory(&self, memory: MemorySize) -> io::Result<()> {
        self.put_if_there("memory.max", &(2 * memory.bytes() + OVERHEAD).to_string()).map(drop)
    }

    /// Limits the processor time of the group. Returns false if it does not have the controller.
    pub(crate) fn bound_cpu(&self, quota_us: u64, period_us: u64) -> io::Result<bool> {
        self.put_if_there("cpu.max", &format!("{quota_us} {period_us}"))
    }

    /// Moves a process into the group, which takes up to a grace period of the kernel.
    pub(crate) fn admit(&self, pid: Pid) -> io::Result<()> {
        self.put("cgroup.procs", &pid.as_raw_nonzero().to_string())
    }

    /// Returns true while there is a process in the group, except ended ones that no process has
    /// waited for.
    pub(crate) fn is_populated(&self) -> bool {
        self.read("cgroup.events").is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Kills every process in the group. Returns before they have ended.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match self.put_if_there("cgroup.kill", "1") {
            Ok(true) => Ok(()),
            // Before Linux 5.14.
            Ok(false) => self.kill_one_by_one(),
            Err(error) => Err(error),
        }
    }

    /// Kills the processes one by one. They are frozen first, so that they cannot start others
    /// meanwhile; a frozen process dies of SIGKILL.
    pub(super) fn kill_one_by_one(&self) -> io::Result<()> {
        self.put_if_there("cgroup.freeze", "1")?;
        for _ in 0..ROUNDS {
            let processes = self.read("cgroup.procs")?;
            let pids: Vec<Pid> = processes.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
            if pids.is_empty() || !self.is_populated() {
                break;
            }
            for pid in pids {
                // ESRCH: the process has ended meanwhile. A number is not assigned again before its
                // process was waited for.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            thread::sleep(POLL);
        }
        // Thawed, because a sandbox that is reset uses the group again.
        self.put_if_there("cgroup.freeze", "0").map(drop)
    }

    /// Removes a group that is empty. Returns false if it is not empty.
    pub(crate) fn remove(path: &Path) -> bool {
        // If it does not exist or is not ours to remove, nothing more can be done.
        !is_ours(path) || !matches!(fs::remove_dir(path), Err(error) if error.kind() == io::ErrorKind::ResourceBusy)
    }

    /// Removes the group that `directory` links to. Returns false while there is a process in it.
    pub(crate) fn release(directory: &SandboxDirectory) -> bool {
        target(directory.fd(), LINK).is_none_or(|path| Self::remove(&path))
    }

    fn put_if_there(&self, file: &str, text: &str) -> io::Result<bool> {
        match self.put(file, text) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes to an existing file. Never creates one: the kernel does not offer what has no file.
    fn put(&self, file: &str, text: &str) -> io::Result<()> {
        let file = openat(&self.fd, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // The kernel accepts each of these texts as a whole or not at all.
        rustix::io::write(file, text.as_bytes())?;
        Ok(())
    }

    pub(super) fn read(&self, file: &str) -> io::Result<String> {
        let file = openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        io::read_to_string(fs::File::from(file))
    }
}

pub(super) fn is_ours(path: &Path) -> bool {
    path.is_absolute() && path.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
}

/// Returns the target of the link `name` in `directory`.
pub(super) fn target(directory: BorrowedFd<'_>, name: &str) -> Option<PathBuf> {
    let path = readlinkat(directory, name, Vec::new()).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(path.as_bytes())))
}
