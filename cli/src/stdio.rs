//! The standard streams of this process. Reads and writes that may block indefinitely run on separate threads, so that signals
//! and the other streams are always served. At most two chunks of 64 KiB are buffered.

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

/// Writes a message to stderr, with the prefix of this program. If stderr is on a full disk or closed, the message is lost and
/// the command continues: `eprintln!` would panic.
pub(crate) fn notice(message: impl fmt::Display) {
    tell(&format!("sandboxvm: {message}\n"));
}

/// Writes a text to stderr as it is. It may be lost, as a [`notice`].
pub(crate) fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Resolves when stdout has no reader any more, even if nothing is written to it. Never resolves for a file or a terminal,
/// which sends a signal when it hangs up. Each call starts a thread, which outlives the future.
pub(crate) fn hung_up() -> impl Future<Output = ()> {
    let stdout = rustix::stdio::stdout();
    let (tell, told) = oneshot::channel();
    if !isatty(stdout) {
        thread::spawn(move || {
            // POLLERR of a pipe and POLLHUP of a socket are always reported.
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

/// Returns the failure of a command whose reader closed stdout. That is not an error, so there is no message, and the exit
/// code is that of a process killed by SIGPIPE.
pub(crate) fn reader_left() -> Failure {
    Failure::silent(141)
}

/// Returns standard input in chunks, and `None` at its end. The thread that reads outlives the receiver.
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
                // EIO is a terminal that hung up; any other error ends the input too.
                Err(_) => break,
            };
            if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// A stream for output.
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

/// Receives the output of a process for our streams, in order. Dropping it ends the output.
#[derive(Debug)]
pub(crate) struct OutputSink(mpsc::Sender<(Stream, Vec<u8>)>);

/// Resolves when everything that an [`OutputSink`] received is written.
#[derive(Debug)]
pub(crate) struct OutputEnd(oneshot::Receiver<Result<(), WriteError>>);

/// A write failed.
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
    /// Waits for room for one more chunk; `None` if writing has ended. Cancel safe.
    pub(crate) async fn room(&self) -> Option<mpsc::Permit<'_, (Stream, Vec<u8>)>> {
        self.0.reserve().await.ok()
    }
}

impl OutputEnd {
    /// Waits until everything is written or a write failed. Cancel safe; must not be awaited again after it resolved.
    pub(crate) async fn wait(&mut self) -> Result<(), WriteError> {
        // A thread that panicked writes nothing more.
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

/// Waits until a stream is ready: another process that shares it may have made it non-blocking.
fn wait_for(fd: BorrowedFd<'static>, what: PollFlags) {
    // The read or write that follows reports any error.
    while poll(&mut [PollFd::from_borrowed_fd(fd, what)], None) == Err(Errno::INTR) {}
}
