//! Reads the last messages of a sandbox that failed, for the error that reports the failure: the
//! directory may be removed by the time a user could look into it.

use crate::{
    home::directory::{CONSOLE_LOG, SandboxDirectory, VMM_LOG},
    hostile_text::printable,
};
use std::fmt;

/// Maximum number of bytes of each log that are shown, and of the end of the log after the start of
/// a kernel's report.
const CAP: usize = 2048;
const REST: usize = 512;
/// Number of bytes at the end of the console log that are searched for a report. If a fault follows
/// a fault, the first one is shown.
const SEARCHED: u64 = 32 << 10;
/// How Linux starts a report of a fatal error (arch/x86/mm/fault.c, lib/bug.c, kernel/panic.c).
const REPORTS: [&str; 5] = ["BUG: ", "Oops: ", "kernel BUG at", "general protection fault", "Kernel panic"];

/// The ends of the logs of a failed sandbox. The log of the console is hostile text and must be
/// escaped when shown.
#[derive(Debug, Clone, Default)]
pub struct LastWords {
    /// The end of the guest's console log.
    pub console: String,
    /// The end of the VMM's log.
    pub vmm: String,
}

impl LastWords {
    pub(crate) fn read(directory: &SandboxDirectory) -> Self {
        let tail = |name| {
            let bytes = directory.read_tail(name, SEARCHED).unwrap_or_default();
            String::from_utf8_lossy(&bytes).trim().to_owned()
        };
        Self { console: excerpt(&tail(CONSOLE_LOG)), vmm: end(&tail(VMM_LOG), CAP).to_owned() }
    }
}

/// Returns the start and the end of a kernel's report, or the end of the log if there is no report.
fn excerpt(console: &str) -> String {
    let Some(at) = REPORTS.iter().filter_map(|report| console.find(report)).min() else {
        return end(console, CAP).to_owned();
    };
    let line = console[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let report = &console[line..];
    if report.len() <= CAP + REST {
        return report.to_owned();
    }
    format!("{}\n[...]\n{}", beginning(report, CAP), end(report, REST))
}

fn beginning(text: &str, most: usize) -> &str {
    (0..=most).rev().find_map(|at| text.get(..at)).unwrap_or(text)
}

fn end(text: &str, most: usize) -> &str {
    (text.len().saturating_sub(most)..=text.len()).find_map(|at| text.get(at..)).unwrap_or_default()
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
    fn logs_are_shown_escaped_and_indented() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        assert_eq!(LastWords::read(&directory).to_string(), "");
        directory.write_new(CONSOLE_LOG, b"panic\r\n\x1b[2J\xff\r\n").unwrap();
        assert_eq!(LastWords::read(&directory).to_string(), "\nlast console lines:\n  panic\n  \\u{1b}[2J\u{fffd}");
    }

    #[test]
    fn start_of_a_kernel_report_is_shown() {
        assert_eq!(excerpt("hello\nBUG: unable\nRIP"), "BUG: unable\nRIP");
        let trace = format!(
            "hello\n[1.0] BUG: first\n{}BUG: second\n{}Kernel panic\nthe end",
            "ü\n".repeat(900),
            "x\n".repeat(900)
        );
        let shown = excerpt(&trace);
        assert!(shown.starts_with("[1.0] BUG: first\n") && shown.contains("\n[...]\n"), "{shown}");
        assert!(shown.ends_with("x\nKernel panic\nthe end") && shown.len() < 2600, "{shown}");
        assert_eq!(excerpt(&"ü".repeat(5000)).len(), 2048);
    }
}
