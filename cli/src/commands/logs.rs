//! `logs`: what a sandbox's console, its VMM or one of its processes said.

use crate::{
    environment,
    failure::Failure,
    process_io::{self, Attendance, Outcome},
    runtime,
    signals::Signals,
    stdio,
};
use clap::Args;
use sandboxvm_manager::{Log, Sandbox, printable};
use sandboxvm_protocol::agent::process::{AttachRequest, View};

/// The console log is bounded; this is above its bound.
const WHOLE: u64 = 16 << 20;

/// Show what the guest's kernel and agent wrote to the console, or what is kept of a process's output
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name or ID of the sandbox
    sandbox: String,
    /// ID of a process, as `exec -d` and `ps` print it: show its stdout on stdout and its stderr on stderr
    pid: Option<u32>,
    /// Go on until the process ends; what it writes faster than this is read is left out
    #[arg(short, long, requires = "pid")]
    follow: bool,
    /// Show the VMM's own messages instead
    #[arg(long, conflicts_with = "pid")]
    vmm: bool,
    /// Show only the last N lines
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "pid")]
    tail: Option<usize>,
}

impl Logs {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = environment::manager()?.find(&self.sandbox)?;
        if let Some(pid) = self.pid {
            return of_process(&sandbox, pid, self.follow);
        }
        let log = sandbox.log(if self.vmm { Log::Vmm } else { Log::Console }, WHOLE)?;
        let log = String::from_utf8_lossy(&log).replace("\r\n", "\n");
        // Whoever reads it must not be driven by a guest.
        stdio::print(&printable(last_lines(&log, self.tail)))?;
        Ok(0)
    }
}

/// As it is, since a process's output is for whoever asks for it.
fn of_process(sandbox: &Sandbox, pid: u32, follow: bool) -> Result<u8, Failure> {
    let view = if follow { View::Follow } else { View::Kept };
    let request = AttachRequest { pid, view, stdin: false, terminal: None };
    runtime::block_on(async {
        let attendance = Attendance::looking_on();
        Ok(match process_io::attach(sandbox, request, &attendance, &mut Signals::none()).await? {
            // How the process ended is not what was asked.
            Outcome::Ended(_) => 0,
            Outcome::Left(code) => code,
        })
    })
}

fn last_lines(text: &str, count: Option<usize>) -> &str {
    let Some(count) = count else { return text };
    let body = text.strip_suffix('\n').unwrap_or(text);
    match (count, body.rmatch_indices('\n').nth(count.saturating_sub(1))) {
        (0, _) => "",
        (_, Some((at, _))) => &text[at + 1..],
        (_, None) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        let text = "a\nb\nc\n";
        assert_eq!(last_lines(text, None), text);
        assert_eq!(last_lines(text, Some(0)), "");
        assert_eq!(last_lines(text, Some(1)), "c\n");
        assert_eq!(last_lines(text, Some(2)), "b\nc\n");
        assert_eq!(last_lines(text, Some(9)), text);
        assert_eq!(last_lines("a\nb", Some(1)), "b");
    }
}
