//! The state of a sandbox, derived from its directory each time: the lock shows whether a VMM
//! lives, and the status file has the last report of the VMM. This module may not remember a state,
//! so none can be outdated after a kill -9 or a reboot.

use crate::{
    home::directory::{DirectoryError, STATUS, SandboxDirectory},
    hostile_text,
    vmm::lock,
};
use sandboxvm_protocol::vmm::{ExitReason, Phase, VmStatus};
use serde::Serialize;
use std::fmt;

/// Maximum size of a status in bytes. It has some hundred; the reason of an exit may contain a
/// message.
const MAX_STATUS: u64 = 64 * 1024;
/// Attempts to read a status while it is being written, which takes a microsecond.
const ATTEMPTS: u32 = 5;

/// The state of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// The VMM lives, and the agent does not answer yet.
    Creating,
    /// Processes can be run in the sandbox.
    Running,
    /// All vCPUs are stopped.
    Paused,
    /// The machine has ended, and the VMM reported why.
    Exited {
        /// The reason.
        reason: ExitReason,
    },
    /// The VMM ended without a report: it was killed, or the host was restarted.
    Dead,
}

impl State {
    /// Returns the state as one word, as `ls` shows it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited { .. } => "exited",
            Self::Dead => "dead",
        }
    }

    /// Returns how the machine ended, if it did.
    pub(crate) fn end(&self) -> Option<String> {
        match self {
            Self::Exited { reason } => Some(reason.to_string()),
            Self::Dead => Some("its VMM vanished".to_owned()),
            Self::Creating | Self::Running | Self::Paused => None,
        }
    }

    /// Returns true while the sandbox has a VMM.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Creating | Self::Running | Self::Paused)
    }

    fn derive(vmm_lives: bool, status: Option<&VmStatus>) -> Self {
        match (status, vmm_lives) {
            // The VMM reports this before it releases its lock, some 15 ms of teardown earlier.
            (Some(VmStatus { phase: Phase::Ended, reason: Some(reason), .. }), _) => {
                Self::Exited { reason: reason.clone() }
            }
            (_, false) => Self::Dead,
            (Some(VmStatus { phase: Phase::Ready, .. }), true) => Self::Running,
            (Some(VmStatus { phase: Phase::Paused, .. }), true) => Self::Paused,
            (_, true) => Self::Creating,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Creating => f.write_str("still booting"),
            Self::Running => f.write_str("running"),
            Self::Paused => f.write_str("paused"),
            Self::Exited { reason } => write!(f, "not running: {reason}"),
            Self::Dead => f.write_str("not running: its VMM vanished (killed, or the host restarted)"),
        }
    }
}

/// Returns the current state.
pub(crate) fn read(directory: &SandboxDirectory) -> Result<State, DirectoryError> {
    // In this order: a VMM that ends in between has written its last status before the lock is
    // free.
    let vmm_lives = lock::try_exclude_vmm(directory)?.is_none();
    Ok(State::derive(vmm_lives, status(directory)?.as_ref()))
}

/// Returns the last report of the VMM. Returns `None` before the first one, and if the file is not
/// one that our VMM writes: the VMM can write anything, so no content may keep a sandbox from being
/// listed, ended or removed.
///
/// # Errors
/// When the disk cannot be read, which shows nothing about the sandbox.
pub(crate) fn status(directory: &SandboxDirectory) -> Result<Option<VmStatus>, DirectoryError> {
    // The VMM replaces the content in place with one write, so a reader that sees half of it finds
    // the rest the next time.
    for _ in 0..ATTEMPTS {
        let json = match directory.read_beginning(STATUS, MAX_STATUS) {
            Ok(json) => json,
            Err(error) if error.is_disk_failure() => return Err(error),
            Err(_) => return Ok(None),
        };
        // Data after the object is ignored.
        match serde_json::Deserializer::from_slice(&json).into_iter().next() {
            None => return Ok(None),
            Some(Ok(status)) => {
                let status: VmStatus = status;
                return Ok(Some(VmStatus { reason: status.reason.map(hostile_text::shown), ..status }));
            }
            Some(Err(_)) => std::thread::yield_now(),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::machine::HostMode;

    fn status_of(phase: Phase) -> VmStatus {
        status(phase, None)
    }

    fn status(phase: Phase, reason: Option<ExitReason>) -> VmStatus {
        VmStatus { pid: 1, phase, host_mode: HostMode::Vmx, reason, missing: Vec::new(), clocks_jump: false, wire: 1 }
    }

    #[test]
    fn lock_takes_precedence_over_the_last_status() {
        for phase in [Phase::Created, Phase::Booting, Phase::Ready, Phase::Paused] {
            assert_eq!(State::derive(false, Some(&status(phase, None))), State::Dead, "{phase:?}");
        }
        assert_eq!(State::derive(false, None), State::Dead);
        assert_eq!(State::derive(true, None), State::Creating);
        assert_eq!(State::derive(true, Some(&status(Phase::Booting, None))), State::Creating);
        assert_eq!(State::derive(true, Some(&status(Phase::Ready, None))), State::Running);
        assert_eq!(State::derive(true, Some(&status(Phase::Paused, None))), State::Paused);
    }

    #[test]
    fn reported_reason_counts_before_and_after_the_vmm_ends() {
        let ended = status(Phase::Ended, Some(ExitReason::GuestPanic));
        for vmm_lives in [true, false] {
            assert_eq!(State::derive(vmm_lives, Some(&ended)), State::Exited { reason: ExitReason::GuestPanic });
        }
    }

    #[test]
    fn exit_reasons_are_escaped_and_on_one_line() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let message = "no\nsandboxvm: yes\x1b[2J".into();
        let ended = status(Phase::Ended, Some(ExitReason::HostFailure { message }));
        directory.write_new(STATUS, &serde_json::to_vec(&ended).unwrap()).unwrap();
        let shown = read(&directory).unwrap().to_string();
        assert_eq!(shown, "not running: host failure: no\\nsandboxvm: yes\\u{1b}[2J");
    }

    #[test]
    fn json_is_flat() {
        let json = serde_json::to_string(&State::Exited { reason: ExitReason::Stopped }).unwrap();
        assert_eq!(json, r#"{"state":"exited","reason":"stopped"}"#);
    }

    #[test]
    fn incomplete_directory_is_dead() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        assert_eq!(read(&directory).unwrap(), State::Dead);
        directory.write_new(STATUS, b"{\"pid\":").unwrap();
        assert_eq!(read(&directory).unwrap(), State::Dead);
    }

    #[test]
    fn invalid_status_files_are_ignored() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let _vmm = lock::create(&directory).unwrap();
        let json = serde_json::to_vec(&status_of(Phase::Paused)).unwrap();
        directory.write_new(STATUS, &[&json[..], &[b' '; 70_000]].concat()).unwrap();
        assert_eq!(read(&directory).unwrap(), State::Paused, "spaces say nothing");
        for spoiled in [vec![b' '; 70_000], vec![b'{'; 70_000], b"\xff\0[".to_vec(), Vec::new()] {
            std::fs::write(directory.path().join(STATUS), &spoiled).unwrap();
            assert_eq!(read(&directory).unwrap(), State::Creating, "{} bytes", spoiled.len());
        }
        std::fs::remove_file(directory.path().join(STATUS)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", directory.path().join(STATUS)).unwrap();
        assert_eq!(read(&directory).unwrap(), State::Creating);
        std::fs::remove_file(directory.path().join(STATUS)).unwrap();
        std::fs::create_dir(directory.path().join(STATUS)).unwrap();
        assert_eq!(read(&directory).unwrap(), State::Creating);
    }

    /// How often this thread has slept.
    fn sleeps() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn invalid_status_files_put_no_thread_to_sleep() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        directory.write_new(STATUS, b"{\"pid\":").unwrap();
        let before = sleeps();
        for _ in 0..50 {
            assert_eq!(super::status(&directory).unwrap(), None);
        }
        // Opening a file may wait for a moment.
        assert!(sleeps() - before < 50, "{} sleeps", sleeps() - before);
    }
}
