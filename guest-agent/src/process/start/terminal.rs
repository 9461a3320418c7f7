//! Pseudoterminals for processes that ask for one.

use rustix::fs::{Mode, OFlags, fchown, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::Uid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use sandboxvm_protocol::agent::TerminalSize;
use std::os::fd::{AsFd, OwnedFd};

/// A new terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The side of the agent, for output.
    pub(super) master: OwnedFd,
    /// The same side, for input.
    pub(super) input: OwnedFd,
    /// The side of the process.
    pub(super) slave: OwnedFd,
}

/// Opens a terminal of `size` whose device belongs to `owner`.
pub(super) fn open_terminal(size: TerminalSize, owner: Option<u32>) -> Result<Terminal, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = open("/dev/ptmx", flags, Mode::empty())?;
    unlockpt(&master)?;
    // By ioctl, not by name, because /dev/pts may contain anything.
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    resize(&master, size);
    if let Some(uid) = owner {
        fchown(&slave, Some(Uid::from_raw(uid)), None)?;
    }
    let input = fcntl_dupfd_cloexec(&master, 3)?;
    Ok(Terminal { master, input, slave })
}

/// Sets the size. The foreground process group receives SIGWINCH if it changes.
pub(in crate::process) fn resize(terminal: impl AsFd, size: TerminalSize) {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // Fails only if the file is not a terminal, or if the terminal is gone. Then nothing has a
    // size.
    let _ = tcsetwinsize(terminal, size);
}
