//! Detaching from the caller: the first step of the hidden subcommands.

use rustix::io::close;
use std::{fs, os::fd::RawFd};

/// Moves the process to a separate session, so that Ctrl-C on a terminal does not reach it, and closes all files that it
/// inherited. Must be called before this process opens any file.
pub(crate) fn leave_the_caller() {
    // Fails for the leader of a process group, which a process is when a user starts it from a shell.
    let _ = rustix::process::setsid();
    let inherited: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    // The descriptor of the listing is closed by now, and debug builds abort on closing a descriptor that is not open.
    for fd in inherited.into_iter().filter(|fd| fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()) {
        // SAFETY: this is the first thing the process does, on its only thread: above the standard streams there are only
        // descriptors that it was started with, which nothing in it owns.
        unsafe { close(fd) };
    }
}
