//! A sandbox's share of the host's processors: a quota of processor time for its VMM and everything
//! that the VMM starts. In version 2 of control groups the group of the sandbox
//! ([`crate::vmm::group`]) enforces it. This module adds what version 1 needs: groups of the `cpu`
//! controller, and, since the VMM has to be moved anyway, which costs up to a grace period, also
//! groups that limit its memory and processes.
//!
//! The path of a group is recorded in the sandbox's directory before the group is made, so that any
//! process that removes the sandbox finds it, even after a kill -9 of any process. The group is
//! removed with the sandbox and not with its VMM. If no hierarchy has the controller, or it cannot
//! be written to, the sandbox runs without a share and reports that. This module may never remove a
//! group whose name does not start with [`PREFIX`].

use crate::{
    home::directory::{DirectoryError, SandboxDirectory},
    limits::kept::{CpuShare, Unkept},
    vmm::group::{
        Group, PREFIX,
        place::{self, Place},
    },
};
use rustix::process::Pid;
use sandboxvm_protocol::machine::MIB;
use sandboxvm_protocol::{identity::SandboxId, machine::MemorySize};
use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// File in a sandbox's directory with the paths of its control groups in version 1. Of older
/// sandboxes it has those in either version.
pub(crate) const GROUP: &str = "cgroup";

/// Maximum number of processes and threads in a group: a VMM with its writers, and forks until they
/// are in separate groups.
const PROCESSES: u64 = 512;
/// Memory in bytes that a VMM needs besides guest memory.
const OVERHEAD: u64 = 512 * MIB;

/// Period of the quota, in microseconds.
const PERIOD_US: u64 = 100_000;

/// Limits everything in `group` to `share`. Returns false if the group cannot do that.
pub(crate) fn bound(group: &Group, share: CpuShare) -> bool {
    matches!(group.bound_cpu(quota_us(share), PERIOD_US), Ok(true))
}

fn quota_us(share: CpuShare) -> u64 {
    u64::from(share.percent()) * PERIOD_US / 100
}

/// Limits process `vmm` and everything that it starts to the sandbox's share, if it has one, unless
/// its group already does.
pub(crate) fn hold(
    directory: &SandboxDirectory,
    id: &SandboxId,
    memory: MemorySize,
    share: Option<CpuShare>,
    vmm: Pid,
    is_kept_by_group: bool,
) -> Result<(), DirectoryError> {
    let Some(share) = share else { return Ok(()) };
    if is_kept_by_group {
        return Unkept::CpuShare.is_kept(directory);
    }
    let mut reasons = Vec::new();
    for place in place::with_controller("cpu") {
        let mut groups = Groups { directory, name: format!("{PREFIX}{id}"), paths: Vec::new() };
        match groups.join(&place, &cpu_settings(share), vmm)? {
            Ok(()) => {
                groups.bound(memory, vmm)?;
                return Unkept::CpuShare.is_kept(directory);
            }
            Err(error) => {
                let group = groups.leave();
                reasons.push(format!("{}: {error}", group.display()));
            }
        }
    }
    directory.unlink(GROUP)?;
    let why = match &reasons[..] {
        [] => "this host provides no control group with a cpu controller".to_owned(),
        reasons => format!("cannot create a control group ({})", reasons.join("; ")),
    };
    Unkept::CpuShare.because(directory, &format!("its processor share of {share} is not enforced: {why}"))
}

/// Files of a control group, and what to write into them.
type Settings = Vec<(&'static str, String)>;

fn cpu_settings(share: CpuShare) -> Settings {
    vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota_us(share).to_string())]
}

/// The version 1 groups of one sandbox. Each is recorded before it is made.
struct Groups<'a> {
    directory: &'a SandboxDirectory,
    name: String,
    paths: Vec<PathBuf>,
}

impl Groups<'_> {
    /// Moves `vmm` into a group below `place`, with these settings.
    fn join(&mut self, place: &Place, settings: &Settings, vmm: Pid) -> Result<io::Result<()>, DirectoryError> {
        let group = place.path.join(&self.name);
        if !self.paths.contains(&group) {
            self.paths.push(group.clone());
            let list: Vec<&[u8]> = self.paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
            self.directory.replace(GROUP, &list.join(&b'\n'))?;
        }
        Ok(make(&group, settings, vmm))
    }

    /// Limits memory and processes too, if possible. An error is ignored, because no user asked for
    /// this explicitly. The memory limit is twice the guest memory plus [`OVERHEAD`], because while
    /// a snapshot is written, pages that the guest rewrites exist twice.
    fn bound(&mut self, memory: MemorySize, vmm: Pid) -> Result<(), DirectoryError> {
        let memory = 2 * memory.bytes() + OVERHEAD;
        let settings =
            [("memory", "memory.limit_in_bytes", memory.to_string()), ("pids", "pids.max", PROCESSES.to_string())];
        for (controller, file, text) in settings {
            for place in place::with_controller(controller) {
                // A group without the controller limits nothing and does no harm.
                let _ = self.join(&place, &vec![(file, text.clone())], vmm)?;
            }
        }
        Ok(())
    }

    /// Removes the last group again.
    fn leave(&self) -> PathBuf {
        let last = self.paths.last().cloned().unwrap_or_default();
        let _ = fs::remove_dir(&last);
        last
    }
}

/// Removes the version 1 groups of a sandbox's directory, if there are any. Returns false while
/// there is a process in one.
pub(crate) fn release(directory: &SandboxDirectory) -> bool {
    let Ok(paths) = fs::read(directory.path().join(GROUP)) else { return true };
    let busy = paths.split(|byte| *byte == b'\n').filter(|path| !Group::remove(Path::new(OsStr::from_bytes(path))));
    // Counts all of them, so that one busy group does not keep the others from being removed.
    busy.count() == 0
}

fn make(group: &Path, settings: &Settings, vmm: Pid) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for (file, text) in settings {
        put(&group.join(file), text)?;
    }
    put(&group.join("cgroup.procs"), &vmm.as_raw_nonzero().to_string())
}

/// Writes to an existing file. Never creates one: the kernel does not offer what has no file.
fn put(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn making_a_group_fails_where_there_are_no_control_groups() {
        let home = tempfile::tempdir().unwrap();
        // A directory like a version 1 hierarchy, but in a file system that offers none of its
        // files.
        let group = home.path().join("sandboxvm-abcdefgh");
        let settings = cpu_settings(CpuShare::try_from(50).unwrap());
        assert!(make(&group, &settings, Pid::INIT).is_err());
    }

    #[test]
    fn foreign_groups_are_not_removed() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let innocent = home.path().join("innocent");
        fs::create_dir(&innocent).unwrap();
        directory.replace(GROUP, innocent.as_os_str().as_bytes()).unwrap();
        assert!(release(&directory) && innocent.exists());
        let ours = home.path().join("sandboxvm-abcdefgh");
        fs::create_dir(&ours).unwrap();
        let beside = home.path().join("y").join("sandboxvm-abcdefgh");
        fs::create_dir_all(&beside).unwrap();
        let list = format!("{}\n{}\n{}", ours.display(), innocent.display(), beside.display());
        directory.replace(GROUP, list.as_bytes()).unwrap();
        assert!(release(&directory) && !ours.exists() && !beside.exists() && innocent.exists());
        assert!(release(&directory), "gone already");
    }
}
