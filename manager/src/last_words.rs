//! What a sandbox that failed said last, for the message that reports it: its directory may be gone by the time
//! somebody could look.

use crate::{
    directory::{CONSOLE_LOG, SandboxDirectory, VMM_LOG},
    hostile_text::printable,
};
use std::fmt;

/// How much of each log is kept, in bytes.
const CAP: u64 = 2048;

/// The ends of a failed sandbox's logs. The console's is hostile text: show it escaped.
#[derive(Debug, Clone, Default)]
pub struct LastWords {
    /// Of the guest's console.
    pub console: String,
    /// Of the VMM.
    pub vmm: String,
}

impl LastWords {
    pub(crate) fn read(directory: &SandboxDirectory) -> Self {
        let tail = |name| {
            let bytes = directory.read_tail(name, CAP).unwrap_or_default();
            String::from_utf8_lossy(&bytes).trim().to_owned()
        };
        Self { console: tail(CONSOLE_LOG), vmm: tail(VMM_LOG) }
    }
}

impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, text) in [("last console lines", &self.console), ("last VMM messages", &self.vmm)] {
            if !text.is_empty() {
                write!(f, "\n{title}:")?;
                for line in text.lines() {
                    write!(f, "\n  {}", printable(line.trim_end()))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_is_shown_escaped_and_indented() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        assert_eq!(LastWords::read(&directory).to_string(), "");
        directory.write_new(CONSOLE_LOG, b"panic\r\n\x1b[2J\xff\r\n").unwrap();
        assert_eq!(LastWords::read(&directory).to_string(), "\nlast console lines:\n  panic\n  \\u{1b}[2J\u{fffd}");
    }
}
