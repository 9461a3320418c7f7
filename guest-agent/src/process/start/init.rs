//! The init system of the sandbox, if its main process is one: PID 1 of its own PID, mount and control
//! group namespaces, which the processes that hosts start later enter. The agent stays outside.
//!
//! The agent refers to it by a descriptor of the process, so it never enters the namespaces of another
//! process that has the same PID later. The UTS and IPC namespaces are the machine's: a copy of the
//! machine gets its hostname from the agent, and nothing else uses the others.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A running init.
#[derive(Debug)]
pub(super) struct Init {
    process: OwnedFd,
    agent: OwnedFd,
}

impl Init {
    /// Refers to the child `pid`, which was not reaped.
    pub(super) fn of(pid: Pid) -> Result<Self, Errno> {
        let open = |pid| pidfd_open(pid, PidfdFlags::empty());
        Ok(Self { process: open(pid)?, agent: open(getpid())? })
    }

    /// Returns the descriptor of its process.
    pub(super) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Calls `start`, whose children are in the PID namespace of the init. Fails with `ESRCH` if the init
    /// has ended.
    pub(super) fn with_children_inside<T>(&self, start: impl FnOnce() -> T) -> Result<T, Errno> {
        put_children_into(&self.process)?;
        let started = start();
        if let Err(errno) = put_children_into(&self.agent) {
            eprintln!("sandboxvm-agent: init: processes stay in its namespace: {errno}");
        }
        Ok(started)
    }
}

fn put_children_into(namespace: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: no memory involved. Only children that are created later are in the other namespace.
    let set = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) };
    if set == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
}
