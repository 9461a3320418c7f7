//! The flock that says a VMM is alive, and the finding of the process that holds it.
//!
//! The manager opens and locks `lock`, hands the open file description to the VMM and closes its own copy. From then on
//! the kernel drops the lock when the VMM is gone, however it went. Only a VMM ever holds it exclusively; everybody
//! else takes it shared, for moments, to see that it is free.

use crate::{
    directory::{DirectoryError, LOCK, SandboxDirectory},
    pidfd::Pidfd,
};
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    process::Pid,
};
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

/// Those who hold the lock shared do so for microseconds.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// Makes the lock file and locks it.
pub(crate) fn create(directory: &SandboxDirectory) -> Result<File, DirectoryError> {
    let file = directory.create_file(LOCK)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| directory.error("lock", LOCK, e))?;
    Ok(file)
}

/// Locks the file again, for a sandbox whose VMM ended. Somebody may hold it shared for a moment, to see that it is free.
pub(crate) fn take_again(directory: &SandboxDirectory) -> Result<File, DirectoryError> {
    let file = directory.open_file(LOCK, OFlags::RDWR)?;
    let deadline = Instant::now() + TAKEN_WITHIN;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(directory.error("lock", LOCK, error)),
        }
    }
}

/// True when process `pid` holds the lock: then it is the VMM.
pub(crate) fn is_holder(directory: &SandboxDirectory, pid: u32) -> bool {
    let inode = directory.open_file(LOCK, OFlags::RDONLY).and_then(|lock| {
        lock.metadata().map(|metadata| metadata.ino()).map_err(|error| directory.error("examine", LOCK, error))
    });
    inode.is_ok_and(|inode| holds_exclusively(Path::new(&format!("/proc/{pid}/fdinfo")), inode))
}

/// Holds the lock shared while it lives: no VMM runs, and none can start.
#[derive(Debug)]
pub(crate) struct NoVmm(#[expect(dead_code, reason = "held for its flock")] Option<File>);

/// `None` while a VMM runs. A directory without a lock file was never a sandbox, so nothing runs in it.
pub(crate) fn try_exclude_vmm(directory: &SandboxDirectory) -> Result<Option<NoVmm>, DirectoryError> {
    let file = match directory.open_file(LOCK, OFlags::RDONLY) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(Some(NoVmm(None))),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(NoVmm(Some(file)))),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(directory.error("lock", LOCK, error)),
    }
}

/// Finds the VMM. `hint` is the PID from the status file, which is only believed when that process holds the lock:
/// after a reboot or PID reuse it may be anybody's. Without a true hint every process we may look into is tried.
pub(crate) fn find_holder(directory: &SandboxDirectory, hint: Option<u32>) -> Option<Pidfd> {
    let lock = directory.open_file(LOCK, OFlags::RDONLY).ok()?;
    let inode = lock.metadata().ok()?.ino();
    let hinted = hint.and_then(|pid| open_if_holder(i32::try_from(pid).ok()?, inode));
    hinted.or_else(|| {
        let own = std::process::id();
        fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| u32::try_from(*pid) != Ok(own))
            .find_map(|pid| open_if_holder(pid, inode))
    })
}

/// The pidfd is opened before the check: if the process still exists after the check, the check was about it.
fn open_if_holder(pid: i32, inode: u64) -> Option<Pidfd> {
    let pidfd = Pidfd::open(Pid::from_raw(pid)?).ok()?;
    let holds = holds_exclusively(Path::new(&format!("/proc/{pid}/fdinfo")), inode);
    (holds && pidfd.is_alive()).then_some(pidfd)
}

/// fdinfo lists a file description's locks, `lock: 1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF`
/// (proc_pid_fdinfo(5)). /proc/locks would not do: it names the process that took the lock, not who holds it now.
fn holds_exclusively(fdinfo: &Path, inode: u64) -> bool {
    let Ok(entries) = fs::read_dir(fdinfo) else { return false };
    let suffix = format!(":{inode}");
    entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).any(|info| {
        info.lines().filter(|line| line.starts_with("lock:")).any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words[..], [_, _, "FLOCK", _, "WRITE", _, file, ..] if file.ends_with(&suffix))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::process::{CommandExt, ExitStatusExt},
        process::{Command, Stdio},
    };

    fn directory() -> (tempfile::TempDir, SandboxDirectory) {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        (home, directory)
    }

    /// A child with the lock as its stdin, as a VMM has it: by open file description, not by having locked it.
    fn child_with(lock: File) -> std::process::Child {
        Command::new("sleep").arg("60").stdin(Stdio::from(lock)).process_group(0).spawn().unwrap()
    }

    #[test]
    fn held_by_a_description_that_was_handed_on_and_free_after_its_holders_death() {
        let (_home, directory) = directory();
        let mut child = child_with(create(&directory).unwrap());
        assert!(try_exclude_vmm(&directory).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(try_exclude_vmm(&directory).unwrap().is_some());
        assert!(find_holder(&directory, Some(child.id())).is_none());
    }

    #[test]
    fn the_holder_is_found_with_a_true_hint_a_false_one_and_none() {
        let (_home, directory) = directory();
        let mut child = child_with(create(&directory).unwrap());
        let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
        for hint in [Some(child.id()), Some(stranger.id()), Some(u32::MAX), Some(0), None] {
            assert!(find_holder(&directory, hint).is_some(), "{hint:?}");
        }
        find_holder(&directory, Some(stranger.id())).unwrap().kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(stranger.try_wait().unwrap().is_none(), "a process without the lock was killed");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn a_reader_of_the_lock_is_no_holder() {
        let (_home, directory) = directory();
        drop(create(&directory).unwrap());
        let shared = directory.open_file(LOCK, OFlags::RDONLY).unwrap();
        flock(&shared, FlockOperation::LockShared).unwrap();
        let mut child = child_with(shared);
        assert!(find_holder(&directory, Some(child.id())).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
