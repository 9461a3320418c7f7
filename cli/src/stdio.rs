//! Our own standard streams. Reads and writes that may block for ever happen on threads of their own, so that signals
//! and the other streams are always served; a chunk or two of 64 KiB is all that is held.

use crate::failure::Failure;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    termios::isatty,
};
use std::{
    fmt,
    future::{Future, pending},
    io::{self, Write},
    os::fd::BorrowedFd,
    thread,
};
use tokio::sync::{mpsc, oneshot};

const CHUNK: usize = 64 * 1024;

/// Prints to stdout.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(reader_left()),
        Err(error) => Err(Failure::new(format_args!("cannot write to stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Resolves when stdout has no reader any more, though nothing is written to it. Never for a terminal, whose end is a
/// signal, and for a file. The thread is left behind when the future goes: one for each call.
pub(crate) fn hung_up() -> impl Future<Output = ()> {
    let stdout = rustix::stdio::stdout();
    let (tell, told) = oneshot::channel();
    if !isatty(stdout) {
        thread::spawn(move || {
            // POLLERR of a pipe and POLLHUP of a socket come unasked.
            wait_for(stdout, PollFlags::empty());
            let _ = tell.send(());
        });
    }
    async move {
        if told.await.is_err() {
            pending().await
        }
    }
}

/// The failure of a command whose reader went away: it has seen what it wanted, so nothing is said, and the exit code is
/// that of a process killed by SIGPIPE.
pub(crate) fn reader_left() -> Failure {
    Failure::silent(141)
}

/// Standard input in chunks, `None` at its end. The thread is left behind when the receiver goes.
pub(crate) fn stdin_chunks() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    wait_for(rustix::stdio::stdin(), PollFlags::IN);
                    continue;
                }
                // EIO: a terminal that hung up. Whatever else: there is no more input.
                Err(_) => break,
            };
            if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Which of our streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// Takes a process's output for our streams, in its order. Dropping it says that no more follows.
#[derive(Debug)]
pub(crate) struct OutputSink(mpsc::Sender<(Stream, Vec<u8>)>);

/// Tells when everything that an [`OutputSink`] took is written.
#[derive(Debug)]
pub(crate) struct OutputEnd(oneshot::Receiver<Result<(), WriteError>>);

/// A stream took no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteError {
    pub(crate) stream: Stream,
    pub(crate) errno: Errno,
}

/// Starts the thread that writes.
pub(crate) fn output() -> (OutputSink, OutputEnd) {
    let (sink, mut chunks) = mpsc::channel::<(Stream, Vec<u8>)>(1);
    let (tell, end) = oneshot::channel();
    thread::spawn(move || {
        let mut result = Ok(());
        while let Some((stream, bytes)) = chunks.blocking_recv() {
            if let Err(errno) = write_all(stream, &bytes) {
                result = Err(WriteError { stream, errno });
                break;
            }
        }
        drop(chunks);
        // The receiver may be gone: the command is ending.
        let _ = tell.send(result);
    });
    (OutputSink(sink), OutputEnd(end))
}

impl OutputSink {
    /// Room for one more chunk; `None` once nothing is written any more. Cancel safe.
    pub(crate) async fn room(&self) -> Option<mpsc::Permit<'_, (Stream, Vec<u8>)>> {
        self.0.reserve().await.ok()
    }
}

impl OutputEnd {
    /// Waits until everything is written, or cannot be. Cancel safe; must not be awaited again once it resolved.
    pub(crate) async fn wait(&mut self) -> Result<(), WriteError> {
        // A thread that panicked has written what it could.
        (&mut self.0).await.unwrap_or(Ok(()))
    }
}

fn write_all(stream: Stream, mut bytes: &[u8]) -> Result<(), Errno> {
    let fd = match stream {
        Stream::Stdout => rustix::stdio::stdout(),
        Stream::Stderr => rustix::stdio::stderr(),
    };
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(fd, PollFlags::OUT),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Our streams may have been made non-blocking by whoever shares them.
fn wait_for(fd: BorrowedFd<'static>, what: PollFlags) {
    // An error here shows again in the read or write that follows.
    while poll(&mut [PollFd::from_borrowed_fd(fd, what)], None) == Err(Errno::INTR) {}
}
