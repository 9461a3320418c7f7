//! Finds the processes that a VMM started if no control group holds them together: by the session
//! that the VMM makes before anything else. Every process that a VMM forks is in that session, and
//! none can leave it, because the filter of system calls does not allow setsid(2).
//!
//! When a VMM is started, this module records it in a file that the VMM cannot write: its PID, its
//! session, and the time of its start, which together identify this process and no later one. The
//! kernel does not assign a number again while it is the number of a session. Live forks are in the
//! session of their parent, so this module may never return a process that belongs to another
//! sandbox: a process that is recorded as that sandbox's VMM, was started by it, or is in that
//! sandbox's control group.

use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::Home,
    },
    vmm::{group, pidfd::Pidfd},
};
use rustix::process::Pid;
use sandboxvm_protocol::vmm::users;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fs};

/// The file in a sandbox's directory that identifies the process of its VMM.
pub(crate) const FILE: &str = "vmm.json";
const MAX_FILE: u64 = 4096;
/// Maximum length of a chain of parents: more processes than a family may have
/// (`vmm/src/confine/bounds.rs`).
const MOST_ANCESTORS: u32 = 8192;

/// Identifies one process among all that run during this boot of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Vmm {
    pid: i32,
    session: i32,
    /// Time of its start in clock ticks after the host's boot.
    began: u64,
    boot: String,
}

/// What the kernel reports about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: i32,
    session: i32,
    began: u64,
}

/// Records that `pid` is the VMM of the sandbox in `directory`. A VMM that was just started makes a
/// session with its own number; a live fork, for which `in_session_of_parent` is set, is in one
/// already.
pub(crate) fn write_down(
    directory: &SandboxDirectory,
    pid: Pid,
    in_session_of_parent: bool,
) -> Result<(), DirectoryError> {
    let pid = pid.as_raw_nonzero().get();
    let Some(process) = process(pid) else { return directory.unlink(FILE) };
    let session = if in_session_of_parent { process.session } else { pid };
    let vmm = Vmm { pid, session, began: process.began, boot: boot_id() };
    let text = serde_json::to_vec(&vmm).map_err(|error| directory.error("write", FILE, error))?;
    // Not synced: after a restart of the host the file means nothing.
    directory.unlink(FILE)?;
    directory.write_new(FILE, &text)
}

/// Returns the running processes of the sandbox in `directory` if its VMM was recorded: the VMM and
/// what it started, except processes of other sandboxes.
pub(crate) fn of(home: &Home, directory: &SandboxDirectory) -> Vec<Pidfd> {
    let Some(own) = read(directory) else { return Vec::new() };
    let processes = all();
    let others: Vec<Vmm> = others(home, directory).filter(|other| other.session == own.session).collect();
    let is =
        |pid: i32, vmm: &Vmm| pid == vmm.pid && processes.get(&pid).is_some_and(|process| process.began == vmm.began);
    let belongs_to_another = |pid: i32| {
        let mut pid = pid;
        for _ in 0..MOST_ANCESTORS {
            if is(pid, &own) {
                return false;
            }
            if others.iter().any(|other| is(pid, other)) {
                return true;
            }
            match processes.get(&pid) {
                Some(process) if process.session == own.session => pid = process.parent,
                _ => return false,
            }
        }
        false
    };
    // If the number of the session was assigned again, no process in it is ours.
    if processes.get(&own.session).is_some_and(|leader| own.session == own.pid && leader.began != own.began) {
        return Vec::new();
    }
    processes
        .iter()
        .filter(|(pid, process)| is(**pid, &own) || process.session == own.session && process.began >= own.began)
        .filter(|(pid, _)| !belongs_to_another(**pid))
        .filter_map(|(pid, process)| {
            // Opened before it is examined again: if it is alive after that, it is the process that
            // was examined.
            let pidfd = Pidfd::open(Pid::from_raw(*pid)?).ok()?;
            let is_same = self::process(*pid).as_ref() == Some(process);
            let is_ours = || is(*pid, &own) || is_confined(*pid, own.session) && !has_group(*pid);
            (is_same && is_ours() && pidfd.is_alive()).then_some(pidfd)
        })
        .collect()
}

/// Returns true if the process has a filter of system calls and a user of a VMM. The number of a
/// session may be assigned to a foreign process, but a filter cannot be dropped, nor the user of a
/// VMM changed.
fn is_confined(pid: i32, session: i32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    let own = rustix::process::geteuid().as_raw();
    let users = [users::of_vmm(session.unsigned_abs()), users::SHARED, own];
    field("Seccomp:") == Some(2) && field("Uid:").is_some_and(|user| users.contains(&user))
}

/// Returns true if the process is in the control group of a sandbox. It then belongs to another
/// sandbox, since this one has no group.
fn has_group(pid: i32) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    unified.rsplit('/').next().is_some_and(|name| name.starts_with(group::PREFIX))
}

fn read(directory: &SandboxDirectory) -> Option<Vmm> {
    let vmm: Vmm = serde_json::from_slice(&directory.read(FILE, MAX_FILE).ok()?).ok()?;
    (vmm.boot == boot_id()).then_some(vmm)
}

/// Returns the VMMs of all other sandboxes of the home.
fn others<'h>(home: &'h Home, directory: &SandboxDirectory) -> impl Iterator<Item = Vmm> + 'h {
    let own = rustix::fs::fstat(directory.fd()).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    let directories =
        [home.sandboxes(), home.staging()].into_iter().flat_map(|path| fs::read_dir(path).into_iter().flatten());
    directories.flatten().filter_map(move |entry| {
        let other = SandboxDirectory::open(entry.path()).ok()?;
        let stat = rustix::fs::fstat(other.fd()).ok()?;
        (own != Some((stat.st_dev, stat.st_ino))).then(|| read(&other)).flatten()
    })
}

fn all() -> HashMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

fn process(pid: i32) -> Option<Process> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses fields 4, 6 and 22 of proc_pid_stat(5), counted after the name in parentheses. A zombie
/// does not count as running.
fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    let number = |at: usize| fields.get(at)?.parse::<i32>().ok();
    Some(Process { parent: number(1)?, session: number(3)?, began: fields.get(19)?.parse().ok()? })
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::process::CommandExt,
        process::{Child, Command},
        time::{Duration, Instant},
    };

    #[test]
    fn stat_fields_are_found_after_any_process_name() {
        let stat = "7 (a) b (c) S 1 7 9 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 4 0 99 1 2";
        assert_eq!(parse(stat), Some(Process { parent: 1, session: 9, began: 99 }));
        assert_eq!(parse(&stat.replace(" S ", " Z ")), None, "it runs no more");
        assert!(parse("").is_none() && parse("7 (x) S 1").is_none());
    }

    struct Place {
        _dir: tempfile::TempDir,
        home: Home,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::open(&dir.path().join("home")).unwrap();
            Self { _dir: dir, home }
        }

        fn sandbox(&self, name: &str) -> SandboxDirectory {
            SandboxDirectory::create(self.home.sandboxes().join(name)).unwrap()
        }
    }

    fn pids(processes: &[Pidfd]) -> Vec<u32> {
        let mut pids: Vec<u32> = processes.iter().map(|fd| fd.pid().as_raw_nonzero().get().unsigned_abs()).collect();
        pids.sort_unstable();
        pids
    }

    fn pid(child: &Child) -> Pid {
        Pid::from_child(child)
    }

    /// Starts a process with a filter, like a VMM, in its own session.
    fn vmm() -> Child {
        let mut command = Command::new("sleep");
        confined(command.arg("60")).spawn().unwrap()
    }

    fn confined(command: &mut Command) -> &mut Command {
        // SAFETY: the closure only makes system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::thread::set_no_new_privs(true)?;
                allow_everything_by_a_filter()
            })
        }
    }

    fn allow_everything_by_a_filter() -> std::io::Result<()> {
        // The only instruction returns SECCOMP_RET_ALLOW.
        let mut allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut allow };
        // SAFETY: the program has one instruction and outlives the call.
        match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    fn end(child: &mut Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn recorded_vmm_is_found_and_later_processes_are_not() {
        let place = Place::new();
        let directory = place.sandbox("a");
        assert!(of(&place.home, &directory).is_empty(), "nothing is written down");
        let mut child = vmm();
        write_down(&directory, pid(&child), false).unwrap();
        assert_eq!(pids(&of(&place.home, &directory)), [child.id()]);
        // As if the number had been assigned to another process since.
        let text = directory.read(FILE, MAX_FILE).unwrap();
        let mut written: Vmm = serde_json::from_slice(&text).unwrap();
        written.began -= 1;
        directory.unlink(FILE).unwrap();
        directory.write_new(FILE, &serde_json::to_vec(&written).unwrap()).unwrap();
        assert!(of(&place.home, &directory).is_empty(), "another process");
        (written.began, written.boot) = (written.began + 1, "another".to_owned());
        directory.unlink(FILE).unwrap();
        directory.write_new(FILE, &serde_json::to_vec(&written).unwrap()).unwrap();
        assert!(of(&place.home, &directory).is_empty(), "another boot");
        end(&mut child);
    }

    /// Starts processes in the session of the first, one of which belongs to another sandbox.
    #[test]
    fn processes_of_a_session_are_found_except_other_sandboxes() {
        let place = Place::new();
        let (parent, child) = (place.sandbox("a"), place.sandbox("b"));
        let script = "sleep 60 & sleep 60 & wait";
        let mut leader = confined(Command::new("sh").args(["-c", script])).spawn().unwrap();
        write_down(&parent, pid(&leader), false).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let family = loop {
            let family = pids(&of(&place.home, &parent));
            if family.len() == 3 {
                break family;
            }
            assert!(Instant::now() < deadline, "{family:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        let forked = *family.iter().find(|pid| **pid != leader.id()).unwrap();
        write_down(&child, Pid::from_raw(forked.cast_signed()).unwrap(), true).unwrap();
        let of_parent = pids(&of(&place.home, &parent));
        assert!(of_parent.len() == 2 && !of_parent.contains(&forked), "{of_parent:?}");
        assert_eq!(pids(&of(&place.home, &child)), [forked]);
        // Ends the rest of the family; the other sandbox keeps running.
        for process in of(&place.home, &parent) {
            process.kill().unwrap();
        }
        leader.wait().unwrap();
        // The others of its family die as well, but this process is not their parent.
        let deadline = Instant::now() + Duration::from_secs(20);
        while pids(&of(&place.home, &child)) != [forked] {
            assert!(Instant::now() < deadline, "{:?}", pids(&of(&place.home, &child)));
            std::thread::sleep(Duration::from_millis(5));
        }
        for process in of(&place.home, &child) {
            process.kill().unwrap();
        }
    }

    #[test]
    fn process_without_a_filter_belongs_to_no_sandbox() {
        let place = Place::new();
        let directory = place.sandbox("a");
        let mut leader = vmm();
        write_down(&directory, pid(&leader), false).unwrap();
        let session = leader.id().cast_signed();
        assert!(is_confined(session, session) && !is_confined(std::process::id().cast_signed(), session));
        end(&mut leader);
        assert!(of(&place.home, &directory).is_empty());
    }
}
