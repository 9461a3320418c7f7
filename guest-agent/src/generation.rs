//! `/run/sandboxvm/generation`: a value that differs in every copy of a machine. It is for programs
//! that have random numbers, or anything else that two machines must not share, in their memory.
//! [`crate::identity`] writes the file after a restore, fork or reset. A program that watches it
//! (inotify(7), IN_MODIFY) is notified.

use rustix::{
    fs::{Mode, OFlags, mkdir, open},
    io::{Errno, pwrite},
    rand::{GetRandomFlags, getrandom},
};
use std::{fmt::Write, os::fd::OwnedFd};

const DIRECTORY: &str = "/run/sandboxvm";
const FILE: &str = "/run/sandboxvm/generation";

/// The open file, or none if it could not be created.
#[derive(Debug, Default)]
pub(crate) struct GenerationFile(Option<OwnedFd>);

impl GenerationFile {
    /// Creates the file with a first value. It must be in a file system in memory.
    pub(crate) fn make() -> Self {
        let directory = match mkdir(DIRECTORY, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => Ok(()),
            made => made,
        };
        let file = directory.and_then(|()| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            open(FILE, flags, Mode::from_raw_mode(0o644))
        });
        let made = Self(file.inspect_err(|errno| eprintln!("sandboxvm-agent: boot: there is no {FILE}: {errno}")).ok());
        made.renew();
        made
    }

    /// Writes a new value: 32 hexadecimal digits of random numbers of the kernel and a line feed,
    /// in one write.
    pub(crate) fn renew(&self) {
        let Some(file) = &self.0 else { return };
        if let Err(errno) = value().and_then(|value| pwrite(file, value.as_bytes(), 0)) {
            eprintln!("sandboxvm-agent: identity: {FILE} stays as it is: {errno}");
        }
    }
}

fn value() -> Result<String, Errno> {
    let mut bytes = [0; 16];
    // If the kernel's generator is initialised, up to 256 bytes are returned completely
    // (getrandom(2)).
    if getrandom(&mut bytes, GetRandomFlags::empty())? != bytes.len() {
        return Err(Errno::AGAIN);
    }
    let mut value = String::with_capacity(2 * bytes.len() + 1);
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(value, "{byte:02x}");
    }
    value.push('\n');
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_hexadecimal_and_differ() {
        let (first, second) = (value().unwrap(), value().unwrap());
        assert_eq!(first.len(), 33);
        assert!(first.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(first, second);
    }
}
