//! What a sandbox is doing, derived from its directory each time it is asked: the lock says whether a VMM lives, the
//! status file what it last said. Nothing is remembered, so nothing goes stale after a kill -9 or a reboot.

use crate::{
    home::directory::{DirectoryError, STATUS, SandboxDirectory},
    hostile_text,
    vmm::lock,
};
use sandboxvm_protocol::vmm::{ExitReason, Phase, VmStatus};
use serde::Serialize;
use std::fmt;

/// A status is some hundred bytes; an exit reason may carry a message.
const MAX_STATUS: u64 = 64 * 1024;
/// A write of a status takes a microsecond.
const ATTEMPTS: u32 = 5;

/// What a sandbox is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Its VMM lives; the agent does not answer yet.
    Creating,
    /// Processes can be run in it.
    Running,
    /// All its vCPUs stand still.
    Paused,
    /// Over, and its VMM said why.
    Exited {
        /// Why.
        reason: ExitReason,
    },
    /// Its VMM vanished without a word: killed, or the host restarted.
    Dead,
}

impl State {
    /// One word, as `ls` shows it.
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

    /// How its machine ended, if it did.
    pub(crate) fn end(&self) -> Option<String> {
        match self {
            Self::Exited { reason } => Some(reason.to_string()),
            Self::Dead => Some("its VMM vanished".to_owned()),
            Self::Creating | Self::Running | Self::Paused => None,
        }
    }

    /// True while it has a VMM.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Creating | Self::Running | Self::Paused)
    }

    fn derive(vmm_lives: bool, status: Option<&VmStatus>) -> Self {
        match (status, vmm_lives) {
            // Said before the VMM lets go of its lock, some 15 ms of teardown earlier.
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

/// The state now.
pub(crate) fn read(directory: &SandboxDirectory) -> Result<State, DirectoryError> {
    // In this order: a VMM that ends in between has written its last status before the lock is free.
    let vmm_lives = lock::try_exclude_vmm(directory)?.is_none();
    Ok(State::derive(vmm_lives, status(directory)?.as_ref()))
}

/// What the VMM last said; `None` before its first word, and where the file is not one that a VMM of ours writes: it is the
/// VMM's to write, so no content of it may keep a sandbox from being listed, ended or removed.
///
/// # Errors
/// When the disk cannot be read, which says nothing about the sandbox.
pub(crate) fn status(directory: &SandboxDirectory) -> Result<Option<VmStatus>, DirectoryError> {
    // The VMM replaces the content in place with one write, so a reader that meets half of it finds the rest next time.
    for _ in 0..ATTEMPTS {
        let json = match directory.read_beginning(STATUS, MAX_STATUS) {
            Ok(json) => json,
            Err(error) if error.is_disk_failure() => return Err(error),
            Err(_) => return Ok(None),
        };
        // What follows the object is of no interest.
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
        VmStatus { pid: 1, phase, host_mode: HostMode::Vmx, reason, missing: Vec::new(), clocks_jump: false }
    }

    #[test]
    fn the_lock_wins_over_what_was_last_said() {
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
    fn a_stated_reason_is_reported_whether_or_not_the_vmm_is_gone_yet() {
        let ended = status(Phase::Ended, Some(ExitReason::GuestPanic));
        for vmm_lives in [true, false] {
            assert_eq!(State::derive(vmm_lives, Some(&ended)), State::Exited { reason: ExitReason::GuestPanic });
        }
    }

    #[test]
    fn a_reason_drives_no_terminal_and_is_one_line() {
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
    fn a_directory_that_was_half_made_is_dead() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        assert_eq!(read(&directory).unwrap(), State::Dead);
        directory.write_new(STATUS, b"{\"pid\":").unwrap();
        assert_eq!(read(&directory).unwrap(), State::Dead);
    }

    #[test]
    fn a_status_file_that_a_vmm_spoiled_is_no_status() {
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
}
