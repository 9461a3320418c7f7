//! Signals that are for the command we run, not for us.

use sandboxvm_protocol::agent::SignalNumber;
use std::{future::poll_fn, io, task::Poll};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT, from now on caught.
#[derive(Debug)]
pub(crate) struct Signals {
    caught: Vec<(SignalNumber, Signal)>,
    seen: Vec<SignalNumber>,
}

impl Signals {
    pub(crate) fn catch() -> io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let caught = kinds.into_iter().map(|kind| {
            let number = u8::try_from(kind.as_raw_value()).ok().and_then(|n| SignalNumber::try_from(n).ok());
            // These four are 1, 2, 3 and 15 (signal(7)).
            Ok((number.ok_or(io::ErrorKind::InvalidInput)?, signal(kind)?))
        });
        Ok(Self { caught: caught.collect::<io::Result<_>>()?, seen: Vec::new() })
    }

    /// The next signal, and how many came before it. Cancel safe.
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
        // Only the first two mean anything to anybody.
        let before = self.seen.len();
        if before < 2 {
            self.seen.push(number);
        }
        (number, before)
    }

    /// The exit code of a command that the first signal ended before it began.
    pub(crate) fn exit_code(&self) -> u8 {
        128 + self.seen.first().map_or(SignalNumber::TERM, |number| *number).get()
    }
}
