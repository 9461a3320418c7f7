//! What the agent itself changes on a sandbox's disk when it boots. It is not a change of the
//! sandbox: the next boot makes it again.
//!
//! ```text
//! /dev /proc /sys /run /run/sandboxvm          empty directory, mode 0755   mount point
//! /etc/hostname /etc/machine-id /etc/hosts     empty file, mode 0644        mount point
//! /etc/resolv.conf                             the agent's content          resolver of the card
//! ```
//! All of it belongs to root. A file at such a path that is anything else was written by a program,
//! and is a change of the sandbox. `/etc` itself is one too, even if only the agent wrote into it,
//! since the disk does not show what the image has.

use crate::network::resolver;
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use rustix::io::{Errno, pread};
use sandboxvm_archive::Candidate;

/// Returns true if the agent created the file and no program changed it.
pub(super) fn is_boot_trace(file: Candidate<'_>) -> Result<bool, Errno> {
    let Candidate { path, about, .. } = file;
    if (about.st_uid, about.st_gid) != (0, 0) {
        return Ok(false);
    }
    let mode = about.st_mode & 0o7777;
    match (path, FileType::from_raw_mode(about.st_mode)) {
        (b"dev" | b"proc" | b"sys" | b"run" | b"run/sandboxvm", FileType::Directory) => {
            Ok(mode == 0o755 && is_empty(file)?)
        }
        (b"etc/hostname" | b"etc/machine-id" | b"etc/hosts", FileType::RegularFile) => {
            Ok(mode == 0o644 && about.st_size == 0)
        }
        (b"etc/resolv.conf", FileType::RegularFile) => Ok(mode == 0o644 && has_content(file, resolver().as_bytes())?),
        _ => Ok(false),
    }
}

fn is_empty(directory: Candidate<'_>) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut names = Dir::new(openat(directory.parent, directory.name, flags, Mode::empty())?)?;
    while let Some(name) = names.read() {
        if !matches!(name?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn has_content(file: Candidate<'_>, content: &[u8]) -> Result<bool, Errno> {
    if usize::try_from(file.about.st_size) != Ok(content.len()) {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(file.parent, file.name, flags, Mode::empty())?;
    let mut found = vec![0; content.len()];
    Ok(pread(opened, &mut found[..], 0)? == found.len() && found == content)
}
