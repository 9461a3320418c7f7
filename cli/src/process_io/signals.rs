//! Signals that this program catches to pass them to the command that it runs.

use sandboxvm_manager::SignalNumber;
use std::{fs, future::poll_fn, io, task::Poll};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT, which are caught from now on, except those that our caller made us ignore (nohup, a
/// background job of a shell).
#[derive(Debug)]
pub(crate) struct Signals {
    caught: Vec<(SignalNumber, Signal)>,
    seen: Vec<SignalNumber>,
}

impl Signals {
    pub(crate) fn catch() -> io::Result<Self> {
        let ignored = ignored(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let mut caught = Vec::new();
        for kind in kinds {
            let number = kind.as_raw_value();
            if ignored & 1 << (number - 1) == 0 {
                let number = u8::try_from(number).ok().and_then(|number| SignalNumber::try_from(number).ok());
                // These four are 1, 2, 3 and 15 (signal(7)).
                caught.push((number.ok_or(io::ErrorKind::InvalidInput)?, signal(kind)?));
            }
        }
        Ok(Self { caught, seen: Vec::new() })
    }

    /// Returns a value that catches no signal: each has its default effect.
    pub(crate) fn none() -> Self {
        Self { caught: Vec::new(), seen: Vec::new() }
    }

    /// Waits for the next signal, and returns it with the number of signals before it. Cancel safe.
    pub(crate) async fn next(&mut self) -> (SignalNumber, usize) {
        let number = poll_fn(|context| {
            for (number, signal) in &mut self.caught {
                if let Poll::Ready(Some(())) = signal.poll_recv(context) {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await;
        // No caller distinguishes more than two.
        let before = self.seen.len();
        if before < 2 {
            self.seen.push(number);
        }
        (number, before)
    }

    /// Returns the exit code of a command that the first signal ended before it started.
    pub(crate) fn exit_code(&self) -> u8 {
        128 + self.seen.first().map_or(SignalNumber::TERM, |number| *number).get()
    }
}

/// Returns the mask of ignored signals, with signal 1 in bit 0 (proc_pid_status(5)).
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use crate::process_io::signals::*;

    #[test]
    fn mask_of_ignored_signals_is_parsed() {
        assert_eq!(ignored("Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001003\n"), 0x1003);
        assert_eq!(ignored("Name:\tx\n"), 0);
    }
}
