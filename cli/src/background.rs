//! Becoming a process that has nothing to do with the caller that started it: what the hidden subcommands do first.

use rustix::io::close;
use std::{fs, os::fd::RawFd};

/// A session of its own, so that no terminal's Ctrl-C is for it, and none of the files that the caller's caller left open.
/// To be called before anything else of this process is open.
pub(crate) fn leave_the_caller() {
    // Fails for the leader of a process group, which a shell makes of it when somebody starts it by hand.
    let _ = rustix::process::setsid();
    let inherited: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    // The listing's own is closed by now; closing what is not open would be a mistake that debug builds stop at.
    for fd in inherited.into_iter().filter(|fd| fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()) {
        // SAFETY: this is the first thing the process does, on its only thread: above the standard streams there are only
        // descriptors that it was started with, which nothing in it owns.
        unsafe { close(fd) };
    }
}
