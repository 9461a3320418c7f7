//! An output stream of a process: the read end of a pipe, or the master side of a terminal.
//!
//! Remembers the events of epoll (edge-triggered) and the result of the last read, so that no read
//! is made that cannot return data. A pipe that returned less than requested is empty, and one that
//! hung up without data stays empty.

use rustix::io::{Errno, ioctl_fionread, read};
use sandboxvm_protocol::frame::FrameKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Maximum number of bytes that are read from a terminal after its process ended. A pipe reports
/// how many bytes it contains. A terminal does not, and a process that is left could write without
/// end.
const TERMINAL_REST: usize = 256 * 1024;

/// A readable stream of a process.
#[derive(Debug)]
pub(crate) struct Output {
    fd: OwnedFd,
    kind: FrameKind,
    terminal: bool,
    readable: bool,
    hung_up: bool,
    writer_ended: bool,
    drained: bool,
    /// Number of bytes that still count after the process ended. Unknown for a pipe until it is
    /// needed.
    rest: Option<usize>,
}

impl Output {
    /// Takes the read end of a pipe, which must be non-blocking.
    pub(super) fn pipe(fd: OwnedFd, kind: FrameKind) -> Self {
        Self::new(fd, kind, false)
    }

    /// Takes the master side of a terminal, which must be non-blocking.
    pub(super) fn terminal(fd: OwnedFd) -> Self {
        Self::new(fd, FrameKind::Stdout, true)
    }

    fn new(fd: OwnedFd, kind: FrameKind, terminal: bool) -> Self {
        Self { fd, kind, terminal, readable: false, hung_up: false, writer_ended: false, drained: false, rest: None }
    }

    /// Returns the kind of frames for its bytes.
    pub(crate) fn kind(&self) -> FrameKind {
        self.kind
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Notes an event of epoll: there is data, or no writer is left, or both.
    pub(crate) fn note(&mut self, data: bool, hung_up: bool) {
        self.readable |= data || (hung_up && self.terminal);
        self.hung_up |= hung_up;
        self.drained |= self.hung_up && !self.readable;
    }

    /// Notes that the process was reaped. What is in the stream now is all that counts, even if
    /// other processes have it open.
    pub(super) fn writer_ended(&mut self) {
        self.writer_ended = true;
        self.readable |= !self.drained;
        if self.terminal {
            self.rest = Some(TERMINAL_REST);
        }
    }

    /// Returns true if a read may return data.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable && !self.drained
    }

    /// Returns true if no output of the process is left in it.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Reads once without blocking. Returns 0 if there is nothing now, or nothing more at all.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let want = self.rest.map_or(buffer.len(), |rest| rest.min(buffer.len()));
        let buffer = &mut buffer[..want];
        let count = loop {
            match read(&self.fd, &mut *buffer) {
                Err(Errno::INTR) => {}
                Ok(count) if count > 0 => break count,
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    self.drained |= self.writer_ended;
                    return 0;
                }
                // End of file, or EIO for a terminal that no process uses any more.
                Ok(_) | Err(_) => {
                    self.readable = false;
                    self.drained = true;
                    return 0;
                }
            }
        };
        if count < want && !self.terminal {
            self.readable = false;
            self.drained |= self.hung_up || self.writer_ended;
        } else if self.writer_ended {
            let rest = self.rest.map_or_else(|| self.held(), |rest| rest.saturating_sub(count));
            self.rest = Some(rest);
            self.drained |= rest == 0;
        }
        count
    }

    /// Returns the number of bytes in the pipe.
    fn held(&self) -> usize {
        ioctl_fionread(&self.fd).map_or(0, |held| usize::try_from(held).unwrap_or(usize::MAX))
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::Output;
    use rustix::pipe::{PipeFlags, pipe_with};
    use sandboxvm_protocol::frame::FrameKind;
    use std::os::fd::OwnedFd;

    fn pipe() -> (Output, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        (Output::pipe(reader, FrameKind::Stdout), writer)
    }

    #[test]
    fn output_that_is_written_after_the_end_of_the_process_is_not_read() {
        let (mut output, writer) = pipe();
        rustix::io::write(&writer, &[7; 50_000]).unwrap();
        output.writer_ended();
        let mut buffer = [0; 10_000];
        let mut total = 0;
        while output.is_readable() {
            total += output.read(&mut buffer);
            rustix::io::write(&writer, &[8; 10_000]).ok();
        }
        // The first read is full, so the pipe is asked for the rest. The write after that no longer
        // counts.
        assert_eq!(total, 50_000);
        assert!(output.is_drained());
    }

    #[test]
    fn a_hang_up_without_data_needs_no_read() {
        let (mut output, writer) = pipe();
        drop(writer);
        output.note(false, true);
        assert!(output.is_drained() && !output.is_readable());
    }

    #[test]
    fn a_short_read_before_the_end_leaves_the_pipe_open() {
        let (mut output, writer) = pipe();
        rustix::io::write(&writer, b"abc").unwrap();
        output.note(true, false);
        assert_eq!(output.read(&mut [0; 10]), 3);
        assert!(!output.is_readable() && !output.is_drained());
        rustix::io::write(&writer, b"d").unwrap();
        output.writer_ended();
        assert_eq!(output.read(&mut [0; 10]), 1);
        assert!(output.is_drained());
    }
}
