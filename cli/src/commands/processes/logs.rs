//! `logs`: shows the output of the console, the VMM or a process of a sandbox.

use crate::{
    failure::Failure,
    options::supervision,
    process_io::{self, Attendance, Outcome, signals::Signals},
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{AttachSpec, Log, Sandbox, View, printable};
use std::time::Duration;

/// Interval at which a log is read with --follow.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The console log is bounded; this is above its bound.
const WHOLE: u64 = 16 << 20;

/// Show the console of a sandbox, or the recent output of a process
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name or ID of the sandbox
    sandbox: String,
    /// ID of a process, as printed by `exec -d` and `ps`: show its stdout on stdout and its stderr on stderr
    pid: Option<u32>,
    /// Keep showing new output until the process or the sandbox ends; output that is written faster than it is read is
    /// skipped
    #[arg(short, long)]
    follow: bool,
    /// Show the console of the guest: messages of its kernel and agent [default without a PID]
    #[arg(long, conflicts_with_all = ["pid", "vmm"])]
    console: bool,
    /// Show the messages of the VMM
    #[arg(long, conflicts_with = "pid")]
    vmm: bool,
    /// Show only the last N lines
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "pid")]
    tail: Option<usize>,
}

impl Logs {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        if let Some(pid) = self.pid {
            return of_process(&sandbox, pid, self.follow);
        }
        let which = if self.vmm { Log::Vmm } else { Log::Console };
        // Checked before the log is read, so that the last lines are not missed.
        let mut is_live = sandbox.state()?.is_live();
        let mut log = sandbox.log(which, WHOLE)?;
        stdio::print(&shown(last_lines(&String::from_utf8_lossy(&log), self.tail)))?;
        if !self.follow {
            return Ok(0);
        }
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let hung_up = stdio::hung_up();
            tokio::pin!(hung_up);
            while is_live {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = &mut hung_up => return Err(stdio::reader_left()),
                    _ = signals.next() => return Ok(0),
                }
                is_live = sandbox.state()?.is_live();
                let now = sandbox.log(which, WHOLE)?;
                match what_is_new(&log, &now) {
                    Some(new) => stdio::print(&shown(&String::from_utf8_lossy(new)))?,
                    None => {
                        stdio::notice("some of the log was dropped before it could be shown");
                        stdio::print(&shown(&String::from_utf8_lossy(&now)))?;
                    }
                }
                log = now;
            }
            Ok(0)
        })
    }
}

/// Escapes terminal sequences of the guest.
fn shown(log: &str) -> String {
    printable(&log.replace("\r\n", "\n"))
}

/// Returns the part of `now` that follows `before`, of which the older half may be gone; `None` if all of `before` is gone.
fn what_is_new<'a>(before: &[u8], now: &'a [u8]) -> Option<&'a [u8]> {
    /// Long enough that it does not occur twice by chance.
    const MARK: usize = 1024;
    if now.starts_with(before) {
        return Some(&now[before.len()..]);
    }
    let mark = &before[before.len().saturating_sub(MARK)..];
    let at = now.windows(mark.len()).rposition(|window| window == mark)?;
    Some(&now[at + mark.len()..])
}

/// Shows the output of a process without escaping it, as `exec` does.
fn of_process(sandbox: &Sandbox, pid: u32, follow: bool) -> Result<u8, Failure> {
    let view = if follow { View::Follow } else { View::Kept };
    let spec = AttachSpec::new(pid, view);
    runtime::block_on(async {
        let attendance = Attendance::looking_on();
        Ok(match process_io::attach(sandbox, spec, &attendance, &mut Signals::none()).await? {
            // The exit code of the process is not that of this command.
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
    fn followed_log_is_not_repeated() {
        assert_eq!(what_is_new(b"", b"abc"), Some(&b"abc"[..]));
        assert_eq!(what_is_new(b"abc", b"abc"), Some(&b""[..]));
        assert_eq!(what_is_new(b"abc", b"abcde"), Some(&b"de"[..]));
        let text: Vec<u8> = (0..4000_u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        assert_eq!(what_is_new(&text[..9000], &text[5000..]), Some(&text[9000..]));
        assert_eq!(what_is_new(&text[..5000], &text[9000..]), None);
    }

    #[test]
    fn tail_counts_lines_from_the_end() {
        let text = "a\nb\nc\n";
        assert_eq!(last_lines(text, None), text);
        assert_eq!(last_lines(text, Some(0)), "");
        assert_eq!(last_lines(text, Some(1)), "c\n");
        assert_eq!(last_lines(text, Some(2)), "b\nc\n");
        assert_eq!(last_lines(text, Some(9)), text);
        assert_eq!(last_lines("a\nb", Some(1)), "b");
    }
}
