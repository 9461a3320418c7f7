//! A process that restores the terminal if ours is killed while the terminal is raw: after SIGKILL, ours cannot do it.
//!
//! ```text
//! RawMode ── starts ──> guardian: notes the settings, says so          stdin: the terminal     stdout: a socket to us
//!    │ raw                  │ waits for the end of the socket
//!    ├ terminal restored ──>│ is killed: nothing left to do
//!    └ killed ─ the kernel ─┴> sees the end, puts the settings back, ends
//! ```
//! It is the same program with a hidden subcommand, in a separate session, so that neither keys nor signals for our process
//! group reach it. It does not modify settings that another process changed in the meantime, such as a shell that was
//! faster. Only [`super::RawMode`] starts it, so it exists only for a terminal in raw mode.

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
/// Starting a program takes milliseconds; a host that swaps may need longer.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Our end of the guardian. Dropping it after the terminal was restored ends the guardian.
#[derive(Debug)]
pub(super) struct Guardian {
    child: Child,
    /// The guardian restores the terminal when this is closed.
    _line: UnixStream,
}

impl Guardian {
    /// Starts a guardian, and returns when it has saved the settings of the terminal on stdin. Then they may be changed.
    pub(super) fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let terminal = rustix::stdio::stdin().as_fd().try_clone_to_owned()?;
        // The path of the program may name another version by now.
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
        // The guardian may be stopped or dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the guardian: saves the settings, waits until stdout is closed, and restores the settings.
pub(crate) fn guard() -> Result<(), Failure> {
    background::leave_the_caller();
    let (terminal, line) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let before = tcgetattr(terminal)?;
    let mut raw = before.clone();
    raw.make_raw();
    rustix::io::write(line, &[1])?;
    while let Ok(1..) | Err(Errno::INTR) = rustix::io::read(line, &mut [0; 16]) {}
    // Does not wait for pending output, which the terminal may never show.
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
