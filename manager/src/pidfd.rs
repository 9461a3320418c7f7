//! Processes by descriptor: unlike a PID, a pidfd cannot come to mean another process (pidfd_open(2)).

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{io, os::fd::OwnedFd};
use tokio::io::{Interest, unix::AsyncFd};

/// One process.
#[derive(Debug)]
pub(crate) struct Pidfd(OwnedFd);

impl Pidfd {
    pub(crate) fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, Signal::KILL)?)
    }

    /// False once the process ended, reaped or not.
    pub(crate) fn is_alive(&self) -> bool {
        // It turns readable when the process ends (pidfd_open(2)).
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }

    /// Waits until the process ended.
    pub(crate) async fn ended(self) -> io::Result<()> {
        // SAFETY: an OwnedFd owns its descriptor, keeps it open until it is dropped, which AsyncFd does after it
        // deregistered it, and answers as_raw_fd with that one descriptor at all times.
        let registered = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) };
        registered?.readable().await.map(|_| ())
    }
}
