//! The files in which a machine's names stand: `/etc/hostname`, `/etc/machine-id` and `/etc/hosts`. Each is a file of its
//! own in memory, mounted over the image's at boot and held open from then on. So naming a restored machine is one write
//! to each, where replacing a file on the overlay takes some fifty thousand instructions, and nothing that processes do
//! to `/etc` makes the agent follow it anywhere. Made by boot, written by [`crate::identity`].

use crate::hosts;
use rustix::{
    fs::{Mode, OFlags, ftruncate, open, unlink},
    io::{Errno, pread, pwrite},
    mount::mount_bind,
};
use std::os::fd::{AsFd, OwnedFd};

/// The files; one that could not be mounted stays as the image has it.
#[derive(Debug, Default)]
pub(crate) struct NameFiles {
    hostname: Option<OwnedFd>,
    machine_id: Option<OwnedFd>,
    hosts: Option<OwnedFd>,
}

impl NameFiles {
    /// Mounts them. `/run` must be a file system in memory.
    pub(crate) fn mount(hostname: &str) -> Self {
        // Before the mount hides it.
        let image_hosts = open("/etc/hosts", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).and_then(read);
        let files = Self {
            hostname: mounted("/run/.hostname.sandboxvm", "/etc/hostname"),
            machine_id: mounted("/run/.machine-id.sandboxvm", "/etc/machine-id"),
            hosts: mounted("/run/.hosts.sandboxvm", "/etc/hosts"),
        };
        write(files.hostname.as_ref(), "/etc/hostname", format!("{hostname}\n").as_bytes());
        let image_hosts = image_hosts.ok().flatten().unwrap_or_else(|| hosts::DEFAULT.to_vec());
        write(files.hosts.as_ref(), "/etc/hosts", &hosts::naming(&image_hosts, hostname));
        files
    }

    /// Puts a machine's names in, a newline after each. What processes wrote to `/etc/hosts` beside the line with the
    /// name stays.
    pub(crate) fn write(&self, hostname: &str, machine_id: &str) {
        write(self.hostname.as_ref(), "/etc/hostname", format!("{hostname}\n").as_bytes());
        write(self.machine_id.as_ref(), "/etc/machine-id", format!("{machine_id}\n").as_bytes());
        match self.hosts.as_ref().map(read) {
            Some(Ok(Some(present))) => write(self.hosts.as_ref(), "/etc/hosts", &hosts::naming(&present, hostname)),
            Some(Ok(None)) => eprintln!("sandboxvm-agent: identity: /etc/hosts stays as it is: it is too long"),
            Some(Err(errno)) => eprintln!("sandboxvm-agent: identity: /etc/hosts stays as it is: {errno}"),
            None => {}
        }
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

/// A file from its beginning; `None` for one over [`hosts::MAX`], which processes may have made of it.
fn read(file: impl AsFd) -> Result<Option<Vec<u8>>, Errno> {
    /// Above what the file mostly has: each page of memory costs a fault.
    const STEP: usize = 1024;
    let mut content = Vec::new();
    let mut length = 0;
    loop {
        content.resize(length + STEP, 0);
        length += pread(&file, &mut content[length..], length as u64)?;
        if length > hosts::MAX {
            return Ok(None);
        }
        if length < content.len() {
            // Short: the end, since it is in memory or on a disk.
            content.truncate(length);
            return Ok(Some(content));
        }
    }
}

fn write(file: Option<&OwnedFd>, path: &str, content: &[u8]) {
    let Some(file) = file else { return };
    // Truncated afterwards: names mostly have one length, so that a process that reads meanwhile finds a whole one.
    let written = pwrite(file, content, 0).and_then(|count| ftruncate(file, count as u64));
    if let Err(errno) = written {
        eprintln!("sandboxvm-agent: identity: {path} stays as it is: {errno}");
    }
}
