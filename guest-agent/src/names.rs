//! The files with a machine's names: `/etc/hostname`, `/etc/machine-id` and `/etc/hosts`. Each is a
//! separate file in memory, mounted over the image's file at boot and kept open. So to name a
//! restored machine costs one write to each, while to replace a file on the overlay costs some
//! fifty thousand instructions. And whatever processes do to `/etc`, the agent does not follow it.
//! Boot creates the files, and [`crate::identity`] writes them.

use crate::hosts;
use rustix::{
    fs::{Mode, OFlags, ftruncate, open, unlink},
    io::{Errno, pread, pwrite},
    mount::mount_bind,
};
use std::os::fd::{AsFd, OwnedFd};

/// The files. Of one that could not be mounted, the image's file stays.
#[derive(Debug, Default)]
pub(crate) struct NameFiles {
    hostname: Option<OwnedFd>,
    machine_id: Option<OwnedFd>,
    hosts: Option<OwnedFd>,
}

impl NameFiles {
    /// Mounts the files. With a network card, `/etc/hosts` names the gateway. `/dev/shm` must be a file system in memory.
    pub(crate) fn mount(hostname: &str, has_card: bool) -> Self {
        // Read before the mount hides it.
        let image_hosts = open("/etc/hosts", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).and_then(read);
        let files = Self {
            hostname: mounted("/dev/shm/.hostname.sandboxvm", "/etc/hostname"),
            machine_id: mounted("/dev/shm/.machine-id.sandboxvm", "/etc/machine-id"),
            hosts: mounted("/dev/shm/.hosts.sandboxvm", "/etc/hosts"),
        };
        write(files.hostname.as_ref(), "/etc/hostname", format!("{hostname}\n").as_bytes());
        let image_hosts = image_hosts.ok().flatten().unwrap_or_else(|| hosts::DEFAULT.to_vec());
        let mut own_hosts = hosts::naming(&image_hosts, hostname);
        if has_card {
            hosts::add_gateway(&mut own_hosts);
        }
        write(files.hosts.as_ref(), "/etc/hosts", &own_hosts);
        files
    }

    /// Writes a machine's names. In `/etc/hosts` only the line with the name is replaced, and the
    /// lines of processes stay.
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
            // The image may lack the file.
            Err(Errno::NOENT) => open(path, create | OFlags::WRONLY, mode).and_then(|_| mount_bind(beside, path)),
            bound => bound,
        }?;
        // Only the mount stays visible.
        unlink(beside)?;
        Ok(file)
    });
    file.inspect_err(|errno| eprintln!("sandboxvm-agent: boot: {path} stays as the image has it: {errno}")).ok()
}

/// Reads a file from its beginning. Returns `None` if a process made it longer than [`hosts::MAX`].
fn read(file: impl AsFd) -> Result<Option<Vec<u8>>, Errno> {
    /// Mostly more than the length of the file: each page of memory costs a fault.
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
            // A short read is the end, as the file is in memory or on a disk.
            content.truncate(length);
            return Ok(Some(content));
        }
    }
}

fn write(file: Option<&OwnedFd>, path: &str, content: &[u8]) {
    let Some(file) = file else { return };
    // Truncated after the write: names mostly have the same length, so a process that reads
    // meanwhile gets a complete one.
    let written = pwrite(file, content, 0).and_then(|count| ftruncate(file, count as u64));
    if let Err(errno) = written {
        eprintln!("sandboxvm-agent: identity: {path} stays as it is: {errno}");
    }
}
