//! A device's way of asking the event loop for another turn, for requests that it left in its queue: a wake-up used up
//! its budget, or a limit holds them back.

use super::device::DeviceError;
use crate::devices::kind::SystemCalls;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

/// The calls of a device that does no more than this.
pub(super) const SYSTEM_CALLS: SystemCalls = SystemCalls {
    event_loop: &[libc::SYS_timerfd_create, libc::SYS_timerfd_settime],
    // A register access serves no request, but the reset of a device takes its request for a turn back.
    vcpu: &[libc::SYS_timerfd_settime],
};

/// A descriptor that becomes readable when the device is to be served again (see [`super::device::VirtioDevice::host_fd`]).
#[derive(Debug)]
pub(super) struct Resume(OwnedFd);

impl Resume {
    /// Makes the timer, which is not set.
    ///
    /// # Errors
    /// When timerfd_create(2) fails.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?))
    }

    /// Asks for a turn after `delay`. Replaces what was asked for before.
    ///
    /// # Errors
    /// When the host cannot set the timer.
    pub(super) fn after(&self, delay: Duration) -> Result<(), DeviceError> {
        let it_value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            // Zero would disarm the timer.
            tv_nsec: delay.subsec_nanos().max(1).into(),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)
            .map(drop)
            .map_err(|error| DeviceError::Host { what: "asking for another turn", source: error.into() })
    }

    /// Asks for a turn as soon as the event loop has served its other events.
    ///
    /// # Errors
    /// When the host cannot set the timer.
    pub(super) fn now(&self) -> Result<(), DeviceError> {
        self.after(Duration::ZERO)
    }

    /// Takes the request back, or notes that it was served.
    pub(super) fn drain(&self) {
        // Nothing to read means that a reset of the device came in between.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Resume {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
