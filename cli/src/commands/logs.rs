//! `logs`: what a sandbox's console, or its VMM, said.

use crate::{environment, failure::Failure, stdio};
use clap::Args;
use sandboxvm_manager::{Log, printable};

/// The console log is bounded; this is above its bound.
const WHOLE: u64 = 16 << 20;

/// Show what the guest's kernel and agent wrote to the console
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Show the VMM's own messages instead
    #[arg(long)]
    vmm: bool,
    /// Show only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,
}

impl Logs {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = environment::manager()?.find(&self.sandbox)?;
        let log = sandbox.log(if self.vmm { Log::Vmm } else { Log::Console }, WHOLE)?;
        let log = String::from_utf8_lossy(&log).replace("\r\n", "\n");
        // Whoever reads it must not be driven by a guest.
        stdio::print(&printable(last_lines(&log, self.tail)))?;
        Ok(0)
    }
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
