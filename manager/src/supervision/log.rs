//! The log of a supervisor: a limited number of lines for users.

use super::LOG;
use crate::home::directory::{DirectoryError, SandboxDirectory};
use rustix::fs::{Mode, OFlags, openat};
use std::{fmt, fs::File, io::Write, time::SystemTime};

/// Maximum number of lines that one supervisor writes.
const MOST_LINES: u32 = 200;

/// An open log.
pub(super) struct Log {
    file: File,
    left: u32,
}

impl Log {
    pub(super) fn open(directory: &SandboxDirectory) -> Result<Self, DirectoryError> {
        Ok(Self { file: open(directory)?, left: MOST_LINES })
    }

    pub(super) fn note(&mut self, what: impl fmt::Display) {
        if self.left > 0 {
            self.left -= 1;
            let now = humantime::format_rfc3339_seconds(SystemTime::now());
            // An error is ignored: there is no other place to report it.
            let _ = writeln!(self.file, "{now} {what}");
        }
    }
}

/// Opens the log's file for appending.
pub(super) fn open(directory: &SandboxDirectory) -> Result<File, DirectoryError> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(directory.fd(), LOG, flags, Mode::RUSR | Mode::WUSR);
    opened.map(File::from).map_err(|error| directory.error("open", LOG, error))
}
