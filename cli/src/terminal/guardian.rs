//! A process that puts the terminal back when ours is killed while it is raw. SIGKILL leaves nobody else to do it.
//!
//! ```text
//! RawMode ── starts ──> guardian: notes the settings, says so          stdin: the terminal     stdout: a socket to us
//!    │ raw                  │ waits for the end of the socket
//!    ├ undone in order ────>│ is killed: nothing left to do
//!    └ killed ─ the kernel ─┴> sees the end, puts the settings back, ends
//! ```
//! It is this very program with a hidden subcommand, in a session of its own: what is typed, and what ends our process
//! group, is not for it. It never touches settings that somebody changed since, so a shell that was quicker is not
//! disturbed. Started by [`super::RawMode`] alone, so only for a terminal that is made raw.

use crate::{background, failure::Failure};
use rustix::{
    io::Errno,
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};
use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The hidden subcommand's name.
pub(crate) const SUBCOMMAND: &str = "guard-terminal";
/// Starting a program takes milliseconds; this is for a host that swaps.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Our end: dropping it, after the terminal was put back, ends the guardian.
#[derive(Debug)]
pub(super) struct Guardian {
    child: Child,
    /// Its end is how the guardian is told.
    _line: UnixStream,
}

impl Guardian {
    /// Returns once the settings of the terminal on stdin are noted: from then on they may be changed.
    pub(super) fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let terminal = rustix::stdio::stdin().as_fd().try_clone_to_owned()?;
        // Not by its path, under which there may be another version by now.
        let child = Command::new("/proc/self/exe")
            .arg0("sandboxvm")
            .arg(SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(terminal)
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::null())
            .spawn()?;
        let mut guardian = Self { child, _line: ours };
        guardian._line.set_read_timeout(Some(READY_WITHIN))?;
        guardian._line.read_exact(&mut [0])?;
        Ok(guardian)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // It may be stopped, or have been killed by somebody.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The guardian's own life.
pub(crate) fn guard() -> Result<(), Failure> {
    background::leave_the_caller();
    let (terminal, line) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let before = tcgetattr(terminal)?;
    let mut raw = before.clone();
    raw.make_raw();
    rustix::io::write(line, &[1])?;
    while let Ok(1..) | Err(Errno::INTR) = rustix::io::read(line, &mut [0; 16]) {}
    // Not waiting for output to be shown: nobody may be there to look at it.
    if modes(&tcgetattr(terminal)?) == modes(&raw) {
        tcsetattr(terminal, OptionalActions::Now, &before)?;
    }
    Ok(())
}

fn modes(settings: &Termios) -> [u32; 4] {
    [
        settings.input_modes.bits(),
        settings.output_modes.bits(),
        settings.control_modes.bits(),
        settings.local_modes.bits(),
    ]
}
