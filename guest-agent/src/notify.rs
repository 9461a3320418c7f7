//! One-byte progress reports to the VMM through the guest-notify I/O port.
//!
//! Owns `/dev/port`. A report that fails is dropped: under another VMM no device listens, and the
//! agent continues.

use rustix::fs::{Mode, OFlags, open};
use std::os::fd::OwnedFd;

/// I/O port of the VMM for reports of one byte each.
const PORT: u64 = 0x510;

/// The open guest-notify port, if this machine has one.
#[derive(Debug)]
pub(crate) struct NotifyPort(Option<OwnedFd>);

impl NotifyPort {
    /// Opens `/dev/port`.
    pub(crate) fn open() -> Self {
        Self(open("/dev/port", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok())
    }

    /// Reports that the agent runs.
    pub(crate) fn started(&mut self) {
        self.write(0x01);
    }

    /// Reports that the agent listens.
    pub(crate) fn ready(&mut self) {
        self.write(0x02);
    }

    /// Reports that the reset that follows is an orderly shutdown.
    pub(crate) fn shutting_down(&mut self) {
        self.write(0x03);
    }

    fn write(&mut self, byte: u8) {
        if let Some(port) = &self.0
            && rustix::io::pwrite(port, &[byte], PORT).is_err()
        {
            self.0 = None;
        }
    }
}
