//! A control group for each VMM, in the version 2 hierarchy: everything that a VMM starts is in it too and cannot leave it, so
//! that ending all processes of the group ends the sandbox, whatever code took the VMM over. A VMM is in its group from its
//! beginning ([`crate::spawn`]); a live fork is moved before its guest runs, since the filter of system calls could not let a
//! VMM choose a group without letting it make namespaces.
//!
//! ```text
//! place    where groups can be made
//! making   makes one, with the controllers that are to be had
//! pool     made ahead, so that a start does not wait for one
//! renewal  bounds existing ones again when a service starts again
//! ```
//! The group's path is written down in the sandbox's directory before it is used, as a symbolic link, so that any process that removes
//! the sandbox finds it, also after a kill -9 of anybody; it goes with the sandbox and not with its VMM. Where the group has
//! controllers, it bounds memory and processes of the VMM and all that it starts. Where there is no group, [`crate::family`]
//! ends what can be found.

mod making;
pub(crate) mod place;
pub(crate) mod pool;
mod renewal;

use crate::{
    directory::{DirectoryError, SandboxDirectory},
    home::Home,
};
pub use making::{Containment, containment};
use rustix::{
    fs::{Mode, OFlags, fstatfs, open, openat, readlinkat},
    io::Errno,
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

/// In a sandbox's directory: where its group is.
pub(crate) const LINK: &str = "group";
/// Of the names of all groups: nothing else is ever ended or removed.
pub(crate) const PREFIX: &str = "sandboxvm-";

/// `CGROUP2_SUPER_MAGIC`, linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
/// What a VMM takes beside guest memory.
const OVERHEAD: u64 = 512 * MIB;
/// Rounds of stopping and killing all of a group, where the kernel does not do it in one step.
const ROUNDS: u32 = 1000;
const POLL: Duration = Duration::from_millis(1);

/// An existing control group, open.
#[derive(Debug)]
pub(crate) struct Group {
    fd: OwnedFd,
    path: PathBuf,
}

impl Group {
    /// A group for a VMM that is about to be started in `directory`: the sandbox's own, if it had a VMM before, one of the
    /// pool's, or one made now. `None` where there is none to be had; nothing is written down then.
    pub(crate) fn take(home: &Home, directory: &SandboxDirectory) -> Result<Option<Self>, DirectoryError> {
        let found = match readlinkat(directory.fd(), LINK, Vec::new()) {
            Ok(_) => Self::renew(directory),
            Err(Errno::NOENT) if pool::take_into(home, directory) => Self::of(directory),
            Err(Errno::NOENT) => return Self::make_for(directory),
            Err(error) => return Err(directory.error("read", LINK, error)),
        };
        match found {
            Some(group) => Ok(Some(group)),
            // The host restarted since it was made, or what it was in is gone.
            None => {
                directory.unlink(LINK)?;
                Self::make_for(directory)
            }
        }
    }

    /// The group that the sandbox had before, made again under its path. Linux 6.18 kills a process that clone3(2) starts in a
    /// group that was killed at any time before: it compares the count of kills of the caller's group with that of the new one.
    fn renew(directory: &SandboxDirectory) -> Option<Self> {
        let path = target(directory.fd(), LINK).filter(|path| is_ours(path))?;
        if Self::remove(&path) {
            making::make(&path).ok()?;
        }
        Self::of(directory)
    }

    fn make_for(directory: &SandboxDirectory) -> Result<Option<Self>, DirectoryError> {
        let Some(path) = making::new_path() else { return Ok(None) };
        rustix::fs::symlinkat(&path, directory.fd(), LINK).map_err(|error| directory.error("link", LINK, error))?;
        if making::make(&path).is_ok()
            && let Some(group) = Self::of(directory)
        {
            return Ok(Some(group));
        }
        Self::remove(&path);
        directory.unlink(LINK)?;
        Ok(None)
    }

    /// The group of the sandbox in `directory`; `None` when it has none, or the group does not exist any more, and then
    /// nothing runs in it.
    pub(crate) fn of(directory: &SandboxDirectory) -> Option<Self> {
        Self::at(&target(directory.fd(), LINK)?)
    }

    fn at(path: &Path) -> Option<Self> {
        if !is_ours(path) {
            return None;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).ok()?;
        let kind = fstatfs(&fd).ok()?.f_type;
        (u64::try_from(kind) == Ok(CGROUP2)).then(|| Self { fd, path: path.to_owned() })
    }

    /// For clone3(2).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bounds the memory of all in it, where the group has that controller. While a snapshot is written, what the guest
    /// rewrites exists twice.
    pub(crate) fn bound_memory(&self, memory: MemorySize) -> io::Result<()> {
        self.put_if_there("memory.max", &(2 * memory.bytes() + OVERHEAD).to_string()).map(drop)
    }

    /// False where the group does not have the controller.
    pub(crate) fn bound_cpu(&self, quota_us: u64, period_us: u64) -> io::Result<bool> {
        self.put_if_there("cpu.max", &format!("{quota_us} {period_us}"))
    }

    /// Moves a process into it, which takes up to a grace period of the kernel.
    pub(crate) fn admit(&self, pid: Pid) -> io::Result<()> {
        self.put("cgroup.procs", &pid.as_raw_nonzero().to_string())
    }

    /// True while there is a process in it, ended ones that nobody waited for aside.
    pub(crate) fn is_populated(&self) -> bool {
        self.read("cgroup.events").is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Ends every process in it. Returns before they are gone.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match self.put_if_there("cgroup.kill", "1") {
            Ok(true) => Ok(()),
            // Before Linux 5.14.
            Ok(false) => self.kill_one_by_one(),
            Err(error) => Err(error),
        }
    }

    /// Frozen, they start no others meanwhile; a frozen process dies of SIGKILL.
    fn kill_one_by_one(&self) -> io::Result<()> {
        self.put_if_there("cgroup.freeze", "1")?;
        for _ in 0..ROUNDS {
            let processes = self.read("cgroup.procs")?;
            let pids: Vec<Pid> = processes.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
            if pids.is_empty() || !self.is_populated() {
                break;
            }
            for pid in pids {
                // ESRCH: it went meanwhile. A number is not given again before its process was waited for.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            thread::sleep(POLL);
        }
        // Used again by a sandbox that is reset.
        self.put_if_there("cgroup.freeze", "0").map(drop)
    }

    /// Removes a group that is empty. False when it is not.
    pub(crate) fn remove(path: &Path) -> bool {
        // Not there, or not ours to remove: nothing more can be done about it.
        !is_ours(path) || !matches!(fs::remove_dir(path), Err(error) if error.kind() == io::ErrorKind::ResourceBusy)
    }

    /// Removes the group that is written down in `directory`. False while there is a process in it.
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

    /// Never makes a file: what is not there is not offered by the kernel.
    fn put(&self, file: &str, text: &str) -> io::Result<()> {
        let file = openat(&self.fd, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // The kernel takes each of these whole or not at all.
        rustix::io::write(file, text.as_bytes())?;
        Ok(())
    }

    fn read(&self, file: &str) -> io::Result<String> {
        let file = openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        io::read_to_string(fs::File::from(file))
    }
}

fn is_ours(path: &Path) -> bool {
    path.is_absolute() && path.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
}

/// Where the link `name` in `directory` leads.
fn target(directory: BorrowedFd<'_>, name: &str) -> Option<PathBuf> {
    let path = readlinkat(directory, name, Vec::new()).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(path.as_bytes())))
}

#[cfg(test)]
mod tests;
