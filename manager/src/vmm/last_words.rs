//! What a sandbox that failed said last, for the message that reports it: its directory may be gone by the time
//! somebody could look.

use crate::{
    home::directory::{CONSOLE_LOG, SandboxDirectory, VMM_LOG},
    hostile_text::printable,
};
use std::fmt;

/// How much of each log is kept, in bytes, and of what follows where a kernel's report began.
const CAP: usize = 2048;
const REST: usize = 512;
/// The end of the console's log that such a report is looked for in, in bytes: of a fault upon a fault the first counts.
const SEARCHED: u64 = 32 << 10;
/// How Linux begins to report that it cannot go on (arch/x86/mm/fault.c, lib/bug.c, kernel/panic.c).
const REPORTS: [&str; 5] = ["BUG: ", "Oops: ", "kernel BUG at", "general protection fault", "Kernel panic"];

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
            let bytes = directory.read_tail(name, SEARCHED).unwrap_or_default();
            String::from_utf8_lossy(&bytes).trim().to_owned()
        };
        Self { console: excerpt(&tail(CONSOLE_LOG)), vmm: end(&tail(VMM_LOG), CAP).to_owned() }
    }
}

/// The beginning of a kernel's report and its end, else the end.
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
    fn only_what_was_said_is_shown_escaped_and_indented() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        assert_eq!(LastWords::read(&directory).to_string(), "");
        directory.write_new(CONSOLE_LOG, b"panic\r\n\x1b[2J\xff\r\n").unwrap();
        assert_eq!(LastWords::read(&directory).to_string(), "\nlast console lines:\n  panic\n  \\u{1b}[2J\u{fffd}");
    }

    #[test]
    fn of_a_kernels_report_the_beginning_is_shown() {
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
