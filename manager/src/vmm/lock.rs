//! The lock (flock) that shows that a VMM is alive, and the search for the process that holds it.
//!
//! The manager opens and locks `lock`, passes the open file description to the VMM and closes its
//! own copy. From then on the kernel releases the lock when the VMM ends, however it ended. Only a
//! VMM may hold the lock exclusively; all other processes take it shared, for moments, to see that
//! it is free.

use crate::{
    home::{
        directory::{DirectoryError, LOCK, SandboxDirectory},
        flock,
        flock::Sharing,
        locks::{FileLock, LockClass},
    },
    vmm::pidfd::Pidfd,
};
use rustix::{fs::OFlags, process::Pid};
use sandboxvm_protocol::vmm::users;
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

/// Maximum time to wait for processes that hold the lock shared, which they do for microseconds.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// Creates the lock file and locks it.
pub(crate) fn create(directory: &SandboxDirectory) -> Result<File, DirectoryError> {
    let file = directory.create_file(LOCK)?;
    let fail = |error| directory.error("lock", LOCK, error);
    // The file is new, so no other process has opened it.
    if flock::try_take(Sharing::Exclusive, &file).map_err(fail)? {
        Ok(file)
    } else {
        Err(fail(ErrorKind::WouldBlock.into()))
    }
}

/// Locks the file again, for a sandbox whose VMM has ended. Another process may hold it shared for
/// a moment, to see that it is free.
pub(crate) fn take_again(directory: &SandboxDirectory) -> Result<File, DirectoryError> {
    let file = directory.open_file(LOCK, OFlags::RDWR)?;
    let fail = |error: io::Error| directory.error("lock", LOCK, error);
    let deadline = Instant::now() + TAKEN_WITHIN;
    while !flock::try_take(Sharing::Exclusive, &file).map_err(fail)? {
        if Instant::now() >= deadline {
            return Err(fail(ErrorKind::WouldBlock.into()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(file)
}

/// Returns true if process `pid` holds the lock: then it is the VMM.
pub(crate) fn is_holder(directory: &SandboxDirectory, pid: u32) -> bool {
    directory.open_file(LOCK, OFlags::RDONLY).is_ok_and(|lock| holds(pid, &lock))
}

/// Holds the lock shared while it lives: no VMM runs, and none can be started.
#[derive(Debug)]
pub(crate) struct NoVmm(#[expect(dead_code, reason = "held for its lock")] Option<FileLock>);

/// Takes the lock shared. Returns `None` while a VMM runs. A directory without a lock file was
/// never a sandbox, so no VMM runs in it.
pub(crate) fn try_exclude_vmm(directory: &SandboxDirectory) -> Result<Option<NoVmm>, DirectoryError> {
    let file = match directory.open_file(LOCK, OFlags::RDONLY) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(Some(NoVmm(None))),
        Err(error) => return Err(error),
    };
    let held = FileLock::try_on(LockClass::Vmm, Sharing::Shared, file);
    Ok(held.map_err(|error| directory.error("lock", LOCK, error))?.map(|lock| NoVmm(Some(lock))))
}

/// Finds the VMM. `hint` is the PID from the status file, which is only trusted if that process
/// holds the lock: after a reboot, or if the PID was reused, it may be the PID of any process. If
/// the hint is wrong, every process that this one may examine is tried.
pub(crate) fn find_holder(directory: &SandboxDirectory, hint: Option<u32>) -> Option<Pidfd> {
    let lock = directory.open_file(LOCK, OFlags::RDONLY).ok()?;
    hint.and_then(|pid| open_if_holder(pid, &lock)).or_else(|| {
        let own = std::process::id();
        fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != own)
            .find_map(|pid| open_if_holder(pid, &lock))
    })
}

/// Opens the pidfd before the check: if the process still exists after the check, it is the process
/// that was checked.
fn open_if_holder(pid: u32, lock: &File) -> Option<Pidfd> {
    let pidfd = Pidfd::open(Pid::from_raw(i32::try_from(pid).ok()?)?).ok()?;
    (holds(pid, lock) && pidfd.is_alive()).then_some(pidfd)
}

/// Returns true if process `pid`, of a user that a VMM may have, has this very file open and locked
/// exclusively by that descriptor. fdinfo lists the locks of a file description,
/// `lock: 1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF` (proc_pid_fdinfo(5)); the
/// descriptor itself shows which file it is, by device and number. /proc/locks would not do: it
/// names the process that took the lock, not the one that holds it now.
fn holds(pid: u32, lock: &File) -> bool {
    let Ok(wanted) = lock.metadata() else { return false };
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    let mut descriptors = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let has_it = descriptors.any(|descriptor| {
        let is_same = || {
            let file = fs::metadata(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
            Some((file.dev(), file.ino()) == (wanted.dev(), wanted.ino()))
        };
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
        info.lines().any(is_exclusive_lock) && is_same().unwrap_or(false)
    });
    has_it && effective_user(pid).is_some_and(|user| users::is_of_vmm(user) || user == wanted.uid())
}

fn is_exclusive_lock(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    matches!(words[..], ["lock:", _, "FLOCK", _, "WRITE", ..])
}

fn effective_user(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
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

    /// Starts a child with the lock as its stdin. Like a VMM, it holds the lock by its open file
    /// description, and did not take it itself.
    fn child_with(lock: File) -> std::process::Child {
        Command::new("sleep").arg("60").stdin(Stdio::from(lock)).process_group(0).spawn().unwrap()
    }

    #[test]
    fn lock_is_held_by_the_inherited_description_until_its_holder_dies() {
        let (_home, directory) = directory();
        let mut child = child_with(create(&directory).unwrap());
        assert!(try_exclude_vmm(&directory).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(try_exclude_vmm(&directory).unwrap().is_some());
        assert!(find_holder(&directory, Some(child.id())).is_none());
    }

    #[test]
    fn holder_is_found_with_right_wrong_and_no_hint() {
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
    fn process_with_a_shared_lock_is_not_the_holder() {
        let (_home, directory) = directory();
        drop(create(&directory).unwrap());
        let shared = directory.open_file(LOCK, OFlags::RDONLY).unwrap();
        assert!(flock::try_take(Sharing::Shared, &shared).unwrap());
        let mut child = child_with(shared);
        assert!(find_holder(&directory, Some(child.id())).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Two new file systems number their files alike. They are mounted in the mount namespace of a
    /// thread, because the mounts would otherwise be visible on the host.
    #[test]
    fn file_with_the_same_inode_number_elsewhere_is_not_the_lock() {
        use rustix::{
            mount::{MountFlags, MountPropagationFlags, mount, mount_change},
            thread::{UnshareFlags, unshare_unsafe},
        };
        if !rustix::process::getuid().is_root() {
            return;
        }
        let tried = std::thread::spawn(|| {
            // SAFETY: no descriptor changes meaning; the thread ends with the test.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            for at in [&one, &two] {
                mount("none", at.path(), "tmpfs", MountFlags::empty(), None).unwrap();
            }
            let directory = SandboxDirectory::create(one.path().join("x")).unwrap();
            let wanted = create(&directory).unwrap();
            let number = |file: &File| file.metadata().unwrap().ino();
            let mut decoys = (0..100).map(|name| File::create_new(two.path().join(name.to_string())).unwrap());
            let decoy = decoys.find(|decoy| number(decoy) == number(&wanted)).expect("numbered alike");
            assert!(flock::try_take(Sharing::Exclusive, &decoy).unwrap());
            let mut bystander = child_with(decoy);
            assert!(!is_holder(&directory, bystander.id()));
            assert!(find_holder(&directory, Some(bystander.id())).is_none());
            let mut vmm = child_with(wanted);
            assert!(is_holder(&directory, vmm.id()) && find_holder(&directory, Some(bystander.id())).is_some());
            for child in [&mut bystander, &mut vmm] {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        });
        tried.join().unwrap();
    }

    #[test]
    fn process_of_another_local_user_is_not_the_holder() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let (_home, directory) = directory();
        let lock = create(&directory).unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(lock)).uid(64_999).spawn().unwrap();
        assert!(!is_holder(&directory, child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
