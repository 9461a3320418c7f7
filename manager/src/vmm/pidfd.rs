//! Processes by descriptor. Unlike a PID, a pidfd can never refer to another process
//! (pidfd_open(2)).

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{io, os::fd::OwnedFd};
use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor of one process.
#[derive(Debug)]
pub(crate) struct Pidfd {
    fd: OwnedFd,
    pid: Pid,
}

impl Pidfd {
    pub(crate) fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self { fd: pidfd_open(pid, PidfdFlags::empty())?, pid })
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, pid: self.pid })
    }

    /// Returns the PID, which refers to this process as long as it is alive.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, Signal::KILL)?)
    }

    /// Returns false once the process has ended, whether or not it was reaped.
    pub(crate) fn is_alive(&self) -> bool {
        // The descriptor becomes readable when the process ends (pidfd_open(2)).
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(self) -> io::Result<()> {
        // SAFETY: an OwnedFd owns its descriptor, keeps it open until it is dropped, which AsyncFd
        // does after it deregistered it, and answers as_raw_fd with that one descriptor at all
        // times.
        let registered = unsafe { AsyncFd::register_with_interest(self.fd, Interest::READABLE) };
        registered?.readable().await.map(|_| ())
    }
}
