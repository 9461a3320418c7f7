//! Reads whole answers from a connection of the host.

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::os::fd::OwnedFd;

/// Size in bytes of the head of an answer.
pub(super) const HEAD: usize = 16;

/// The answers on a connection.
#[derive(Debug)]
pub(super) struct Answers<'a> {
    connection: &'a OwnedFd,
    buffer: Vec<u8>,
    /// The bytes that were read and not returned yet.
    begin: usize,
    end: usize,
}

impl<'a> Answers<'a> {
    /// No answer is longer than `longest`.
    pub(super) fn of(connection: &'a OwnedFd, longest: usize) -> Self {
        Self { connection, buffer: vec![0; longest], begin: 0, end: 0 }
    }

    /// Returns the next answer, or none at the end of the connection.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Errno> {
        loop {
            let rest = &self.buffer[self.begin..self.end];
            if let Some(length) = rest.first_chunk().filter(|_| rest.len() >= HEAD) {
                let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
                if !(HEAD..=self.buffer.len()).contains(&length) {
                    return Err(Errno::PROTO);
                }
                if rest.len() >= length {
                    let answer = self.begin..self.begin + length;
                    self.begin = answer.end;
                    return Ok(Some(&self.buffer[answer]));
                }
            }
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
            self.end += match recv(self.connection, &mut self.buffer[self.end..], RecvFlags::empty()) {
                Ok((0, _)) => return Ok(None),
                Ok((count, _)) => count,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(errno),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, os::unix::net::UnixStream};

    #[test]
    fn answers_are_whole_however_they_arrive() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let guest = OwnedFd::from(guest);
        let answer = |length: u32, content: u8| {
            let mut answer = vec![content; length as usize];
            answer[..4].copy_from_slice(&length.to_le_bytes());
            answer
        };
        let sent: Vec<Vec<u8>> = (16..40).map(|length| answer(length, 7)).collect();
        let bytes = sent.concat();
        let writing = std::thread::spawn(move || {
            for byte in bytes.chunks(5) {
                host.write_all(byte).unwrap();
            }
        });
        let mut answers = Answers::of(&guest, 64);
        for expected in &sent {
            assert_eq!(answers.next().unwrap(), Some(&expected[..]));
        }
        writing.join().unwrap();
        assert_eq!(answers.next(), Ok(None));
        for length in [15, 65] {
            let (mut host, guest) = UnixStream::pair().unwrap();
            let mut sent = answer(65, 0);
            sent[..4].copy_from_slice(&u32::to_le_bytes(length));
            host.write_all(&sent).unwrap();
            assert_eq!(Answers::of(&guest.into(), 64).next(), Err(Errno::PROTO));
        }
    }
}
