//! Limits a contender's processes from outside, whatever the contender itself allows, with a
//! control group of version 1 or 2 that limits processes and memory. It is the last limit of the
//! bombs, which end by themselves far below it, and no credit to the contender. All processes in
//! the group belong to this program, so those left at the end are killed.

use crate::execution::signal;
use rustix::process::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// Above the limit at which the fork bomb ends by itself.
const PROCESSES: u64 = 3000;
/// Above the limit at which the memory bomb ends by itself.
const MEMORY: u64 = 1536 << 20;

/// The control groups of one contender. When the value is dropped, they are removed with all their
/// processes.
#[derive(Debug)]
pub struct Guard {
    name: String,
    groups: Vec<PathBuf>,
}

impl Guard {
    /// Creates a group for `contender`. Fails with the reason if the host provides none.
    pub fn new(token: &str, contender: &str) -> Result<Self, String> {
        let name = format!("{token}-{contender}");
        let mut guard = Self { name: name.clone(), groups: Vec::new() };
        let root = Path::new("/sys/fs/cgroup");
        let limits: &[(PathBuf, &str, u64)] = if root.join("pids/cgroup.procs").exists() {
            &[(root.join("pids"), "pids.max", PROCESSES), (root.join("memory"), "memory.limit_in_bytes", MEMORY)]
        } else {
            &[(root.to_owned(), "pids.max", PROCESSES), (root.to_owned(), "memory.max", MEMORY)]
        };
        for (parent, file, limit) in limits {
            let group = parent.join(&name);
            if !guard.groups.contains(&group) {
                fs::create_dir(&group).map_err(|error| format!("cannot make {}: {error}", group.display()))?;
                guard.groups.push(group.clone());
            }
            fs::write(group.join(file), limit.to_string())
                .map_err(|error| format!("cannot set {} of {}: {error}", file, group.display()))?;
        }
        Ok(guard)
    }

    /// Returns the path of the group in its hierarchies.
    pub fn parent(&self) -> String {
        format!("/{}", self.name)
    }

    /// Returns the same command, which enters the group before it starts.
    pub fn hold(&self, command: &Command) -> Command {
        let mut held = Command::new("sh");
        let enter: String = self
            .groups
            .iter()
            .map(|group| format!("echo $$ >'{}/cgroup.procs' || exit 125; ", group.display()))
            .collect();
        held.arg("-c").arg(enter + "exec \"$@\"").arg("guard").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => held.env(name, value),
                None => held.env_remove(name),
            };
        }
        held
    }

    /// Kills all processes in the group and below it.
    pub fn clear(&self) {
        for _ in 0..200 {
            let left: Vec<u32> = self.groups.iter().flat_map(|group| members(group)).collect();
            if left.is_empty() {
                return;
            }
            for pid in left {
                signal(pid, Signal::KILL);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the highest number of processes in the group so far, if the kernel counts that.
    pub fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.groups.first()?.join("pids.peak")).ok()?.trim().parse().ok()
    }
}

fn members(group: &Path) -> Vec<u32> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<u32> = own.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
    for below in below(group) {
        all.extend(members(&below));
    }
    all
}

fn below(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove(group: &Path) {
    for below in below(group) {
        remove(&below);
    }
    // A killed process is in the group until the last of its memory is released.
    for _ in 0..100 {
        if fs::remove_dir(group).is_ok() || !group.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    eprintln!("compare: the control group {} could not be removed: rmdir it", group.display());
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.clear();
        for group in &self.groups {
            remove(group);
        }
    }
}
