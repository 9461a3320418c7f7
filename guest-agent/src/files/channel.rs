//! The connection of one request: frames of data in as a reader, frames of data out as a writer,
//! and replies in between. Blocking; stores one frame in each direction.

use super::failure::Trouble;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use sandboxvm_protocol::agent::files::FileReply;
use sandboxvm_protocol::agent::{AgentMessage, HostMessage, MAX_AGENT_MESSAGE, WIRE};
use sandboxvm_protocol::frame::{FrameDecoder, FrameKind, HEADER_LEN, MAX_STREAM_BODY};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a host may take to close the connection after it received a failure.
const DRAINED_WITHIN: Duration = Duration::from_secs(20);

/// The connection.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    decoder: FrameDecoder,
    unsent: Vec<u8>,
    received: Box<[u8]>,
    /// Data of the last frame, and how much of it was read.
    body: Vec<u8>,
    taken: usize,
    /// Whether the host has ended its data.
    ended: bool,
}

impl Channel {
    /// Creates a channel. `unsent` is sent before anything else.
    pub(super) fn new(socket: OwnedFd, decoder: FrameDecoder, unsent: Vec<u8>) -> Self {
        let received = vec![0; MAX_STREAM_BODY].into_boxed_slice();
        Self { socket, decoder, unsent, received, body: Vec::new(), taken: 0, ended: false }
    }

    /// Sends a reply.
    pub(super) fn reply(&mut self, reply: &FileReply) -> Result<(), Trouble> {
        let message = AgentMessage::File(reply.clone());
        WIRE.append_message(&mut self.unsent, &message, MAX_AGENT_MESSAGE).map_err(|_| Trouble::Gone)?;
        let bytes = std::mem::take(&mut self.unsent);
        self.send(&bytes).map_err(|_| Trouble::Gone)
    }

    fn send(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Skips the rest of the host's data. The host confirms with the end of the data that they are
    /// complete.
    pub(super) fn finish_input(&mut self) -> Result<(), Trouble> {
        loop {
            self.taken = self.body.len();
            if !self.next_data().map_err(|_| Trouble::Gone)? {
                return Ok(());
            }
        }
    }

    /// Skips everything until the host closes the connection, or for a limited time.
    pub(super) fn drain(&mut self) {
        let _ = sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(DRAINED_WITHIN));
        while matches!(self.receive(), Ok(1..)) {}
    }

    /// Returns true if the host has closed the connection, or has sent a message that is not
    /// expected here.
    pub(super) fn is_over(&self) -> bool {
        let mut byte = [0];
        !matches!(recv(&self.socket, &mut byte, RecvFlags::DONTWAIT | RecvFlags::PEEK), Err(Errno::AGAIN | Errno::INTR))
    }

    fn receive(&mut self) -> Result<usize, Errno> {
        loop {
            match recv(&self.socket, &mut self.received[..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => return received.map(|(count, _)| count),
            }
        }
    }

    /// Receives the next frame of data. Returns false if the host has ended its data.
    fn next_data(&mut self) -> io::Result<bool> {
        while !self.ended {
            let out_of_order = || io::Error::from(io::ErrorKind::InvalidData);
            if let Some(frame) = self.decoder.next_frame().map_err(|_| out_of_order())? {
                match frame.kind {
                    FrameKind::Stdin => {
                        self.body.clear();
                        self.body.extend_from_slice(frame.body);
                        self.taken = 0;
                        if !self.body.is_empty() {
                            return Ok(true);
                        }
                    }
                    FrameKind::Message if matches!(WIRE.decode_message(frame.body), Ok(HostMessage::StdinEof)) => {
                        self.ended = true;
                    }
                    _ => return Err(out_of_order()),
                }
                continue;
            }
            match self.receive()? {
                // The host closed the connection before it had ended its data.
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.decoder.push(&self.received[..count]),
            }
        }
        Ok(false)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for Channel {
    /// Returns 0 only if the host has ended its data.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.body.len() && !self.next_data()? {
            return Ok(0);
        }
        let rest = &self.body[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// Writes frames of data, each as full as possible.
#[derive(Debug)]
pub(super) struct DataWriter<'c> {
    channel: &'c mut Channel,
    frame: Vec<u8>,
}

impl<'c> DataWriter<'c> {
    pub(super) fn new(channel: &'c mut Channel) -> Self {
        let mut frame = Vec::with_capacity(HEADER_LEN + MAX_STREAM_BODY);
        frame.resize(HEADER_LEN, 0);
        Self { channel, frame }
    }

    /// Fills one frame directly with `read` and sends it. Returns the number of bytes.
    pub(super) fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Result<usize, FillError> {
        self.frame.resize(HEADER_LEN + MAX_STREAM_BODY, 0);
        let count = read(&mut self.frame[HEADER_LEN..]).map_err(FillError::Read)?;
        self.frame.truncate(HEADER_LEN + count.min(MAX_STREAM_BODY));
        self.flush().map_err(|_| FillError::Gone)?;
        Ok(count)
    }
}

/// Why a frame was not sent.
#[derive(Debug)]
pub(super) enum FillError {
    /// Reading failed.
    Read(Errno),
    /// The host has closed the connection.
    Gone,
}

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEADER_LEN + MAX_STREAM_BODY - self.frame.len();
        let count = bytes.len().min(room);
        self.frame.extend_from_slice(&bytes[..count]);
        if count == room {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.frame.len() > HEADER_LEN {
            let header = WIRE.header(FrameKind::Stdout, self.frame.len() - HEADER_LEN);
            self.frame[..HEADER_LEN].copy_from_slice(&header.map_err(io::Error::other)?);
            self.channel.send(&self.frame)?;
            self.frame.truncate(HEADER_LEN);
        }
        Ok(())
    }
}
