//! Makes a control group, with the controllers that limit its processes if the host can pass them
//! on, and reports what this host offers.

use super::{Group, PREFIX, place};
use crate::home::ids::new_id;
use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The controllers that a group should have.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Maximum number of processes and threads in a group: a VMM with its writers, and forks until they
/// are in separate groups.
const PROCESSES: u64 = 512;

/// Returns a path for a new group in the best place that exists.
pub(super) fn new_path() -> Option<PathBuf> {
    let id = new_id().ok()?;
    Some(best_place()?.join(format!("{PREFIX}{id}")))
}

/// Returns a place with all controllers, or else any that can be written to. Searched for only
/// once, where this process is at that time.
fn best_place() -> Option<&'static Path> {
    static PLACE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let mut places = place::unified();
        places.retain(|place| is_writable(place));
        let has_all = |place: &Path| CONTROLLERS.iter().all(|controller| give(place, controller).is_ok());
        let best = places.iter().position(|place| has_all(place)).unwrap_or(0);
        (best < places.len()).then(|| places.swap_remove(best))
    };
    PLACE.get_or_init(find).as_deref()
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

/// Enables `controller` for the groups below `place`.
fn give(place: &Path, controller: &str) -> io::Result<()> {
    let has = |file: &str| -> io::Result<bool> {
        Ok(fs::read_to_string(place.join(file))?.split_whitespace().any(|name| name == controller))
    };
    if has("cgroup.subtree_control")? {
        return Ok(());
    }
    if !has("cgroup.controllers")? {
        return Err(io::Error::other(format!("its parent has no {controller} controller to give")));
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
