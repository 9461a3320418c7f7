//! Bytes for a process's stdin, and the credit with which the host may send more.
//!
//! At most [`STDIN_WINDOW`] bytes are stored. A host that sends more than its credit violates the
//! protocol. Credit is returned in halves of the window, so short input costs no message.

use rustix::io::{Errno, write};
use sandboxvm_protocol::agent::STDIN_WINDOW;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The host sent more than its credit.
#[derive(Debug, thiserror::Error)]
#[error("{0} bytes of stdin are more than the credit given; wait for StdinCredit")]
pub(crate) struct Overrun(usize);

/// The end-of-file character of a terminal (VEOF, Ctrl-D).
const END_OF_FILE: u8 = 4;

/// The stdin of a process.
#[derive(Debug)]
pub(crate) struct Stdin {
    /// None if the process accepts no more input.
    fd: Option<OwnedFd>,
    terminal: bool,
    queue: Vec<u8>,
    written: usize,
    ends: bool,
    last_byte: u8,
    uncredited: u32,
    /// Whether epoll reports when there is room.
    pub(crate) is_watched: bool,
}

impl Stdin {
    /// Takes the write end of a pipe, which must be non-blocking.
    pub(super) fn pipe(fd: OwnedFd) -> Self {
        Self::new(fd, false)
    }

    /// Takes the master side of a terminal, which must be non-blocking.
    pub(super) fn terminal(fd: OwnedFd) -> Self {
        Self::new(fd, true)
    }

    fn new(fd: OwnedFd, terminal: bool) -> Self {
        let fd = Some(fd);
        Self {
            fd,
            terminal,
            queue: Vec::new(),
            written: 0,
            ends: false,
            last_byte: b'\n',
            uncredited: 0,
            is_watched: false,
        }
    }

    /// Returns the file to watch for room, while bytes wait for it.
    pub(crate) fn blocked_on(&self) -> Option<BorrowedFd<'_>> {
        if self.queue.is_empty() { None } else { self.fd.as_ref().map(AsFd::as_fd) }
    }

    /// Receives bytes from the host, and writes what the process has room for.
    pub(crate) fn offer(&mut self, bytes: &[u8]) -> Result<(), Overrun> {
        let held = self.queue.len() - self.written + self.uncredited as usize + bytes.len();
        if held > STDIN_WINDOW as usize {
            return Err(Overrun(held));
        }
        if self.ends {
            return Ok(());
        }
        let mut rest = bytes;
        if self.queue.is_empty() {
            let taken = self.write(bytes);
            rest = &bytes[taken..];
        }
        if !rest.is_empty() {
            if self.written > 0 {
                self.queue.drain(..self.written);
                self.written = 0;
            }
            self.queue.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Writes more of the stored bytes.
    pub(crate) fn drain(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        while self.written < queue.len() {
            let taken = self.write(queue.get(self.written..).unwrap_or_default());
            if taken == 0 {
                break;
            }
            self.written += taken;
        }
        self.queue = queue;
        if self.written >= self.queue.len() {
            self.queue.clear();
            self.written = 0;
            if self.ends {
                self.finish();
            }
        }
    }

    /// Ends the input: the process reads the end of file after the stored bytes.
    pub(crate) fn end(&mut self) {
        self.ends = true;
        if self.queue.is_empty() {
            self.finish();
        }
    }

    /// Returns the credit for bytes that the process has read, if it is large enough for a message.
    pub(crate) fn take_credit(&mut self) -> Option<u32> {
        (self.uncredited >= STDIN_WINDOW / 2 && !self.ends).then(|| std::mem::take(&mut self.uncredited))
    }

    /// Returns true while more input is accepted.
    pub(crate) fn is_open(&self) -> bool {
        self.fd.is_some() && !self.ends
    }

    /// Lets another connection feed the process from now on. Returns its initial credit. It
    /// receives the credit for the bytes that are stored when the process reads them.
    pub(crate) fn change_feeder(&mut self) -> u32 {
        self.uncredited = 0;
        let held = u32::try_from(self.queue.len() - self.written).unwrap_or(STDIN_WINDOW);
        STDIN_WINDOW.saturating_sub(held)
    }

    fn finish(&mut self) {
        if self.terminal {
            // The end of input of a terminal is a character, because the output uses the same file.
            // After an incomplete line, the first character only passes the line on (termios(3),
            // VEOF).
            let characters = [END_OF_FILE; 2];
            let count = if self.last_byte == b'\n' { 1 } else { 2 };
            self.write(&characters[..count]);
        }
        self.fd = None;
    }

    /// Writes without blocking. Bytes that the process will never read are dropped, and count as
    /// read.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(fd) = &self.fd else {
            self.credit(bytes.len());
            return bytes.len();
        };
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            match write(fd, rest) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(count) => taken += count,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.fd = None;
                    taken = bytes.len();
                    break;
                }
            }
        }
        if let Some(last) = bytes.get(..taken).and_then(<[u8]>::last) {
            self.last_byte = *last;
        }
        self.credit(taken);
        taken
    }

    fn credit(&mut self, taken: usize) {
        self.uncredited = self.uncredited.saturating_add(u32::try_from(taken).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::Stdin;
    use rustix::pipe::{PipeFlags, pipe_with};
    use sandboxvm_protocol::agent::STDIN_WINDOW;
    use std::os::fd::OwnedFd;

    fn pipe() -> (Stdin, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        (Stdin::pipe(writer), reader)
    }

    #[test]
    fn the_window_is_held_and_one_byte_more_is_refused() {
        let (mut stdin, _reader) = pipe();
        for _ in 0..STDIN_WINDOW / 0x1_0000 {
            stdin.offer(&[0; 0x1_0000]).unwrap();
        }
        assert!(stdin.blocked_on().is_some());
        assert!(stdin.offer(&[0]).is_err());
    }

    #[test]
    fn credit_comes_in_halves_of_the_window() {
        let (mut stdin, reader) = pipe();
        let mut credited = 0;
        let mut buffer = vec![0; 0x1_0000];
        for round in 1..=16u32 {
            stdin.offer(&[0; 0x8000]).unwrap();
            assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 0x8000);
            if let Some(credit) = stdin.take_credit() {
                assert!(credit >= STDIN_WINDOW / 2);
                credited += credit;
                assert_eq!(credited, round * 0x8000);
            }
        }
        assert_eq!(credited, 16 * 0x8000);
    }

    #[test]
    fn the_credit_of_the_next_feeder_is_the_room_that_is_left() {
        let (mut stdin, reader) = pipe();
        // The pipe takes 64 KiB, and the rest is stored.
        stdin.offer(&[1; 0x1_8000]).unwrap();
        let credit = stdin.change_feeder();
        assert_eq!(credit, STDIN_WINDOW - 0x8000);
        stdin.offer(&vec![2; credit as usize]).unwrap();
        assert!(stdin.offer(&[3]).is_err());
        let mut buffer = vec![0; 0x1_0000];
        let (mut read, mut credited) = (0, 0);
        while read < 0x1_8000 + credit as usize {
            read += rustix::io::read(&reader, &mut buffer).unwrap();
            stdin.drain();
            credited += stdin.take_credit().unwrap_or(0);
        }
        assert_eq!(credited, STDIN_WINDOW, "the credit equals the window");
    }

    #[test]
    fn input_for_a_closed_reader_is_dropped_and_credited() {
        let (mut stdin, reader) = pipe();
        stdin.offer(&[0; 0x1_0000]).unwrap();
        stdin.offer(&[0; 0x1_0000]).unwrap();
        drop(reader);
        stdin.drain();
        assert!(stdin.blocked_on().is_none());
        assert_eq!(stdin.take_credit(), Some(0x2_0000));
    }

    #[test]
    fn the_end_of_input_follows_the_stored_bytes() {
        let (mut stdin, reader) = pipe();
        stdin.offer(&vec![1; 100_000]).unwrap();
        stdin.end();
        let mut total = 0;
        let mut buffer = vec![0; 0x1_0000];
        loop {
            let count = rustix::io::read(&reader, &mut buffer).unwrap();
            if count == 0 {
                break;
            }
            total += count;
            stdin.drain();
        }
        assert_eq!(total, 100_000);
    }
}
