//! The task that keeps one share served.

use crate::{
    guest::shares::connect_share,
    home::directory::SandboxDirectory,
    mounts::{ContentLimits, Share, share_root::ShareRoot},
    supervision::{log::Log, services::child::Child},
    vmm::group::Group,
};
use sandboxvm_protocol::agent::share::ShareNumber;
use std::{ffi::CString, io, path::PathBuf, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Interval of attempts to connect to a mount that is not there yet.
const POLL: Duration = Duration::from_millis(50);
/// Longest interval of these attempts.
const LONGEST_POLL: Duration = Duration::from_secs(1);
/// Maximum time of one attempt. A machine may be paused meanwhile.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// Delay before a process that failed is replaced. It doubles.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A process that worked for this long is replaced after the first delay again. Short, since each reset of the
/// machine ends it as well.
const WORKED_FOR: Duration = Duration::from_secs(1);

/// One share.
pub(super) struct Keeping {
    pub(super) directory: SandboxDirectory,
    pub(super) program: PathBuf,
    pub(super) log: Log,
    pub(super) root: ShareRoot,
    pub(super) number: ShareNumber,
    /// Where it is in the guest, for messages.
    pub(super) at: String,
    pub(super) argument: CString,
}

/// The delays before a process is replaced. A guest decides when one ends, and must not make the host start one
/// after the other.
#[derive(Debug)]
struct Delays {
    next: Duration,
}

impl Default for Delays {
    fn default() -> Self {
        Self { next: FIRST_DELAY }
    }
}

impl Delays {
    /// Returns the delay after a process that worked for some time.
    fn after(&mut self, worked: Duration) -> Duration {
        let delay = if worked >= WORKED_FOR { FIRST_DELAY } else { self.next };
        self.next = (2 * delay).min(LONGEST_DELAY);
        delay
    }
}

/// Returns the argument of the process of a share: `ro:0:0`, `volume:` with its limits, or `copied:0:0:` with the
/// bytes of its file system that the guest leaves free.
pub(super) fn argument(share: &Share<'_>, floor: u64) -> CString {
    let (uid, gid) = share.owner;
    let argument = match (share.limits, share.read_only) {
        (Some(ContentLimits { bytes, names }), _) => format!("volume:{bytes}:{names}"),
        (None, _) if share.copied => format!("copied:{uid}:{gid}:{floor}"),
        (None, true) => format!("ro:{uid}:{gid}"),
        (None, false) => format!("rw:{uid}:{gid}"),
    };
    CString::new(argument).unwrap_or_default()
}

impl Keeping {
    /// Serves the share until the task is stopped.
    pub(super) async fn run(mut self) {
        let (mut poll, mut delays) = (POLL, Delays::default());
        loop {
            let connected = timeout(CONNECTED_WITHIN, connect_share(&self.directory, self.number)).await;
            let Ok(Ok(connection)) = connected else {
                sleep(poll).await;
                poll = (poll * 5 / 4).min(LONGEST_POLL);
                continue;
            };
            poll = POLL;
            let began = Instant::now();
            let problem = match self.root.file.try_clone().and_then(|root| self.spawn(connection, root)) {
                Ok(mut process) => {
                    process.ended().await;
                    // The guest ended the connection: the machine was reset, or the share unmounted.
                    if process.succeeded() { None } else { Some(process.end().await) }
                }
                Err(error) => Some(format!("cannot start {}: {error}", self.program.display())),
            };
            if let Some(problem) = problem {
                self.log.note(format_args!("the share at {} is served again: {problem}", self.at));
            }
            sleep(delays.after(began.elapsed())).await;
        }
    }

    fn spawn(&self, connection: std::os::fd::OwnedFd, root: std::os::fd::OwnedFd) -> io::Result<Child> {
        let group = Group::of(&self.directory);
        let argument = Some(self.argument.as_c_str());
        Child::spawn("process of a share", &self.program, argument, connection, Some(root), group.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_end_again_and_again_are_replaced_ever_later() {
        let mut delays = Delays::default();
        let quick = Duration::from_millis(1);
        let first: Vec<Duration> = (0..10).map(|_| delays.after(quick)).collect();
        assert_eq!((first[0], first[1], first[9]), (FIRST_DELAY, 2 * FIRST_DELAY, LONGEST_DELAY));
        // As many processes as a guest can make the host start in a minute.
        let (mut passed, mut started) = (Duration::ZERO, 0);
        while passed < Duration::from_secs(60) {
            passed += delays.after(quick);
            started += 1;
        }
        assert_eq!(started, 6);
        assert_eq!(delays.after(WORKED_FOR), FIRST_DELAY);
    }
}
