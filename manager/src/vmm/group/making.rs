//! Makes a control group, with the controllers that limit its processes if the host can pass them
//! on, and reports what this host offers.

use super::{
    handle::{Group, PREFIX},
    place,
};
use crate::home::ids::new_id;
use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// What is bounded.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Processes and threads of a VMM with its writers, and of forks until they are in groups of their own.
const PROCESSES: u64 = 512;

/// A path for a new group in the best place there is.
pub(super) fn new_path() -> Option<PathBuf> {
    let id = new_id().ok()?;
    Some(best_place()?.join(format!("{PREFIX}{id}")))
}

/// Gives controllers to the place in which groups are made. Returns false if no group can be made.
pub(crate) fn give_controllers() -> bool {
    best_place().is_some()
}

/// Returns the place with the most controllers, the first of several. Looks for it once, where this
/// process is then.
fn best_place() -> Option<&'static Path> {
    static PLACE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let mut best = None;
        for place in place::unified().into_iter().filter(|place| is_writable(place) && !is_for_threads(place)) {
            let given = give_all(&place);
            if best.as_ref().is_none_or(|(most, _)| given > *most) {
                best = Some((given, place));
            }
            if given == CONTROLLERS.len() {
                break;
            }
        }
        best.map(|(_, place)| place)
    };
    PLACE.get_or_init(find).as_deref()
}

/// Returns true if the groups below `place` accept only threads of its processes, and no process.
fn is_for_threads(place: &Path) -> bool {
    has_processes(place)
        && fs::read_to_string(place.join("cgroup.subtree_control")).is_ok_and(|given| !given.trim().is_empty())
}

/// Gives the groups below `place` as many controllers as it can. Returns how many they have.
fn give_all(place: &Path) -> usize {
    let is_shared = has_processes(place);
    CONTROLLERS.iter().filter(|controller| give(place, controller, is_shared).is_ok()).count()
}

/// Returns true where controllers must not be given. The kernel refuses `memory` below a group with
/// processes. It gives `cpu` and `pids`, but then accepts no process in the groups below it any
/// more, since it expects threads there (cgroups(7)). The root of the hierarchy, which alone has no
/// `cgroup.type`, is exempt.
fn has_processes(place: &Path) -> bool {
    place.join("cgroup.type").exists()
        && fs::read_to_string(place.join("cgroup.procs")).map_or(true, |processes| !processes.is_empty())
}

/// Makes the group. Does nothing if it exists.
pub(super) fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for (file, text) in [("pids.max", PROCESSES.to_string()), ("memory.oom.group", "1".to_owned())] {
        match put(&path.join(file), &text) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_writable(place: &Path) -> bool {
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let flags = rustix::fs::AtFlags::EACCESS;
    rustix::fs::accessat(rustix::fs::CWD, place, access, flags).is_ok()
        && rustix::fs::accessat(rustix::fs::CWD, place.join("cgroup.procs"), rustix::fs::Access::WRITE_OK, flags)
            .is_ok()
}

/// Gives the groups below `place` this controller. `is_shared` says that `place` has processes.
fn give(place: &Path, controller: &str, is_shared: bool) -> io::Result<()> {
    let has = |file: &str| -> io::Result<bool> {
        Ok(fs::read_to_string(place.join(file))?.split_whitespace().any(|name| name == controller))
    };
    if has("cgroup.subtree_control")? {
        return Ok(());
    }
    if !has("cgroup.controllers")? {
        return Err(io::Error::other(format!("its parent has no {controller} controller to give")));
    }
    if is_shared {
        return Err(io::Error::other("processes run in it"));
    }
    put(&place.join("cgroup.subtree_control"), &format!("+{controller}"))
}

/// Writes to an existing file. Never creates one: the kernel does not offer what has no file.
fn put(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// How the VMMs of this host are confined and ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containment {
    /// True if a control group can be made for each VMM.
    pub group: bool,
    /// True if the kernel can kill a group in one step.
    pub kill: bool,
    /// Which of memory, processes and processor time a group limits.
    pub controllers: Vec<&'static str>,
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { group: false, .. } => f.write_str("no control group can be made for a VMM"),
            Self { controllers, .. } if controllers.is_empty() => {
                f.write_str("a control group ends each VMM, and bounds nothing")
            }
            Self { controllers, .. } => {
                write!(f, "a control group ends each VMM, and bounds its {}", controllers.join(", "))
            }
        }
    }
}

/// Returns what this host offers to this process, found by making a group and removing it again.
#[must_use]
pub fn containment() -> Containment {
    let none = Containment { group: false, kill: false, controllers: Vec::new() };
    let Some(path) = new_path() else { return none };
    if make(&path).is_err() {
        return none;
    }
    let has = |file: &str| path.join(file).exists();
    let of = [("memory", "memory.max"), ("processes", "pids.max"), ("processor time", "cpu.max")];
    let controllers = of.into_iter().filter(|(_, file)| has(file)).map(|(name, _)| name).collect();
    let found = Containment { group: true, kill: has("cgroup.kill"), controllers };
    Group::remove(&path);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group with all controllers, as its files show it.
    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let all = [("cgroup.controllers", "cpuset cpu io memory pids\n"), ("cgroup.type", "domain\n")];
        all.iter().chain(files).for_each(|(file, text)| fs::write(dir.path().join(file), text).unwrap());
        dir
    }

    #[test]
    fn a_group_with_processes_gives_no_controllers() {
        let shared = group(&[("cgroup.procs", "1\n"), ("cgroup.subtree_control", "")]);
        assert_eq!(give_all(shared.path()), 0);
        assert_eq!(fs::read_to_string(shared.path().join("cgroup.subtree_control")).unwrap(), "");
        assert!(!is_for_threads(shared.path()));
        let empty = group(&[("cgroup.procs", ""), ("cgroup.subtree_control", "")]);
        assert_eq!(give_all(empty.path()), CONTROLLERS.len());
        // The root has processes, and no type.
        let root = group(&[("cgroup.procs", "1\n"), ("cgroup.subtree_control", "")]);
        fs::remove_file(root.path().join("cgroup.type")).unwrap();
        assert_eq!(give_all(root.path()), CONTROLLERS.len());
    }

    #[test]
    fn a_group_that_gives_controllers_to_threads_takes_no_vmm() {
        let threads = group(&[("cgroup.procs", "1\n"), ("cgroup.subtree_control", "cpu\n")]);
        assert!(is_for_threads(threads.path()));
        let domain = group(&[("cgroup.procs", ""), ("cgroup.subtree_control", "cpu memory pids\n")]);
        assert!(!is_for_threads(domain.path()));
    }
}
