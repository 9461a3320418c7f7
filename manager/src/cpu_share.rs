//! A sandbox's share of the host's processors: a quota of processor time for its VMM and all that the VMM starts. In version
//! 2 of control groups the sandbox's own group ([`crate::group`]) keeps it; this module adds what version 1 takes: groups of
//! the `cpu` controller, and since its VMM is moved there anyhow, which costs up to a grace period, also of those that bound
//! its memory and processes.
//!
//! A group's path is written down in the sandbox's directory before it is made, so that whoever removes the sandbox finds
//! it, also after a kill -9 of anybody; it goes with the sandbox and not with its VMM. Where no hierarchy has the controller,
//! or it may not be written to, the sandbox runs without a share and says so.

use crate::{
    directory::{DirectoryError, SandboxDirectory},
    group::{
        Group, PREFIX,
        place::{self, Place},
    },
    limits::{CpuShare, Unkept},
    record::SandboxRecord,
};
use rustix::process::Pid;
use sandboxvm_protocol::machine::MIB;
use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// In a sandbox's directory: the paths of its control groups in version 1; of those of older sandboxes, in either.
pub(crate) const GROUP: &str = "cgroup";

/// Processes and threads of a VMM with its writers, and of forks until they are in groups of their own.
const PROCESSES: u64 = 512;
/// What a VMM takes beside guest memory.
const OVERHEAD: u64 = 512 * MIB;

/// How often processor time is handed out, in microseconds.
const PERIOD_US: u64 = 100_000;

/// Has all that is in `group` use no more than `share`. False where the group cannot.
pub(crate) fn bound(group: &Group, share: CpuShare) -> bool {
    matches!(group.bound_cpu(quota_us(share), PERIOD_US), Ok(true))
}

fn quota_us(share: CpuShare) -> u64 {
    u64::from(share.percent()) * PERIOD_US / 100
}

/// Has process `vmm` and all that it starts use no more than the sandbox's share, if it has one, unless its own group sees
/// to that.
pub(crate) fn hold(
    directory: &SandboxDirectory,
    record: &SandboxRecord,
    vmm: Pid,
    is_kept_by_group: bool,
) -> Result<(), DirectoryError> {
    let Some(share) = record.limits.cpu_share else { return Ok(()) };
    if is_kept_by_group {
        return Unkept::CpuShare.is_kept(directory);
    }
    let mut reasons = Vec::new();
    for place in place::with_controller("cpu") {
        let mut groups = Groups { directory, name: format!("{PREFIX}{}", record.id), paths: Vec::new() };
        match groups.join(&place, &cpu_settings(share), vmm)? {
            Ok(()) => {
                groups.bound(record, vmm)?;
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

/// The version 1 groups of one sandbox. Each is written down before it is made.
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

    /// Bounds memory and processes too, where that can be had: nobody asked for it in so many words. While a snapshot is
    /// written, what the guest rewrites exists twice.
    fn bound(&mut self, record: &SandboxRecord, vmm: Pid) -> Result<(), DirectoryError> {
        let memory = 2 * record.memory_bytes.bytes() + OVERHEAD;
        let settings =
            [("memory", "memory.limit_in_bytes", memory.to_string()), ("pids", "pids.max", PROCESSES.to_string())];
        for (controller, file, text) in settings {
            for place in place::with_controller(controller) {
                // A group without the controller bounds nothing, and does no harm.
                let _ = self.join(&place, &vec![(file, text.clone())], vmm)?;
            }
        }
        Ok(())
    }

    /// Takes the last one away again.
    fn leave(&self) -> PathBuf {
        let last = self.paths.last().cloned().unwrap_or_default();
        let _ = fs::remove_dir(&last);
        last
    }
}

/// Takes the version 1 groups of a sandbox's directory away, if there are any. False while there is still a process in one.
pub(crate) fn release(directory: &SandboxDirectory) -> bool {
    let Ok(paths) = fs::read(directory.path().join(GROUP)) else { return true };
    let busy = paths.split(|byte| *byte == b'\n').filter(|path| !Group::remove(Path::new(OsStr::from_bytes(path))));
    // Counted to the end, so that one busy group does not keep the others from being removed.
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

/// Never makes a file: what is not there is not offered by the kernel.
fn put(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_none_can_be_made_there_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        // As a version 1 hierarchy looks, but with a file system that offers nothing.
        let group = home.path().join("sandboxvm-abcdefgh");
        let settings = cpu_settings(CpuShare::try_from(50).unwrap());
        assert!(make(&group, &settings, Pid::INIT).is_err());
    }

    #[test]
    fn only_a_group_of_ours_is_ever_removed() {
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
