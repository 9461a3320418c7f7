//! The two files in which a machine's names stand: `/etc/hostname` and `/etc/machine-id`. Each is a file of its own in
//! memory, mounted over the image's at boot and held open from then on. So naming a restored machine is one write to
//! each, where replacing a file on the overlay takes some fifty thousand instructions, and nothing that processes do
//! to `/etc` makes the agent follow it anywhere. Made by boot, written by [`crate::identity`].

use rustix::{
    fs::{Mode, OFlags, ftruncate, open, unlink},
    io::{Errno, pwrite},
    mount::mount_bind,
};
use std::os::fd::OwnedFd;

/// The files; one that could not be mounted stays as the image has it.
#[derive(Debug, Default)]
pub(crate) struct NameFiles {
    hostname: Option<OwnedFd>,
    machine_id: Option<OwnedFd>,
}

impl NameFiles {
    /// Mounts both. `/run` must be a file system in memory.
    pub(crate) fn mount(hostname: &str) -> Self {
        let files = Self {
            hostname: mounted("/run/.hostname.sandboxvm", "/etc/hostname"),
            machine_id: mounted("/run/.machine-id.sandboxvm", "/etc/machine-id"),
        };
        write(files.hostname.as_ref(), "/etc/hostname", &format!("{hostname}\n"));
        files
    }

    /// Puts a machine's names in, a newline after each.
    pub(crate) fn write(&self, hostname: &str, machine_id: &str) {
        write(self.hostname.as_ref(), "/etc/hostname", &format!("{hostname}\n"));
        write(self.machine_id.as_ref(), "/etc/machine-id", &format!("{machine_id}\n"));
    }
}

fn mounted(beside: &str, path: &str) -> Option<OwnedFd> {
    let mode = Mode::from_raw_mode(0o644);
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = open(beside, create | OFlags::RDWR, mode).and_then(|file| {
        match mount_bind(beside, path) {
            // An image need not have it.
            Err(Errno::NOENT) => open(path, create | OFlags::WRONLY, mode).and_then(|_| mount_bind(beside, path)),
            bound => bound,
        }?;
        // The mount is all that is to be seen of it.
        unlink(beside)?;
        Ok(file)
    });
    file.inspect_err(|errno| eprintln!("sandboxvm-agent: boot: {path} stays as the image has it: {errno}")).ok()
}

fn write(file: Option<&OwnedFd>, path: &str, content: &str) {
    let Some(file) = file else { return };
    // Shortened after: names mostly have one length, and then whoever reads meanwhile finds a whole one.
    let written = pwrite(file, content.as_bytes(), 0).and_then(|count| ftruncate(file, count as u64));
    if let Err(errno) = written {
        eprintln!("sandboxvm-agent: identity: {path} stays as it is: {errno}");
    }
}
