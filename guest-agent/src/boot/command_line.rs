//! Reads what the VMM passes to the agent on the kernel command line, as `sandboxvm.KEY=VALUE`.
//!
//! The kernel passes words with a dot neither to init's arguments nor to its environment. So they
//! are read once from `/proc/cmdline`, at boot.

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read};

/// More than the maximum length of a command line of x86 (`COMMAND_LINE_SIZE`).
const LONGEST: usize = 4096;

/// The kernel command line.
#[derive(Debug)]
pub(super) struct CommandLine(String);

impl CommandLine {
    /// Reads `/proc/cmdline`.
    pub(super) fn read() -> Result<Self, Errno> {
        let file = open("/proc/cmdline", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = [0; LONGEST];
        let len = read(&file, &mut buffer)?;
        Ok(Self(String::from_utf8_lossy(&buffer[..len]).into_owned()))
    }

    /// Returns the value of `sandboxvm.hostname=`, the last one if there are several, as the kernel
    /// does with its own options.
    pub(super) fn hostname(&self) -> Option<&str> {
        self.value("sandboxvm.hostname=")
    }

    /// Returns true if the words contain `sandboxvm.run=disk`: `/run` is a directory of the disk.
    pub(super) fn run_is_on_disk(&self) -> bool {
        self.value("sandboxvm.run=") == Some("disk")
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.0.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(key)).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::CommandLine;

    #[test]
    fn the_last_hostname_counts_and_an_empty_one_does_not() {
        let line = |text: &str| CommandLine(text.to_owned());
        assert_eq!(line("quiet sandboxvm.hostname=a panic=-1 sandboxvm.hostname=b\n").hostname(), Some("b"));
        assert_eq!(line("quiet sandboxvm.hostname= panic=-1").hostname(), None);
        assert_eq!(line("quiet xsandboxvm.hostname=a").hostname(), None);
        assert!(line("quiet sandboxvm.run=disk").run_is_on_disk());
        assert!(!line("quiet sandboxvm.run=").run_is_on_disk() && !line("quiet").run_is_on_disk());
    }
}
