//! One host connection: bytes in, frames out, and what its end means.
//!
//! Owns the socket, the partial frame received and the bytes the socket would not take. The latter are at most what
//! one pass of the server produced, because a pass only reads from a process while nothing is left from the last one.
//! Knows nothing of processes but a key.

use super::listener::Transport;
use crate::slab::Key;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use sandboxvm_protocol::agent::{AgentMessage, MAX_AGENT_MESSAGE, MAX_HOST_MESSAGE, WIRE};
use sandboxvm_protocol::frame::{FrameDecoder, FrameKind, HEADER_LEN};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Replies that may wait for a host that sends requests and reads nothing, in bytes; such a host is hung up on.
const MAX_UNSENT: usize = 256 * 1024;

/// How a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The host closed it, or died.
    HostGone,
    /// The transport was reset: this is a restored or forked machine, and the host of this stream is elsewhere.
    TransportReset,
}

/// What one receive brought.
#[derive(Debug)]
pub(super) enum Received {
    /// This many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// Nothing ever again.
    End(End),
}

/// A host connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    transport: Transport,
    unsent: Vec<u8>,
    sent: usize,
    overflowed: bool,
    /// Cuts what arrives into frames.
    pub(super) decoder: FrameDecoder,
    /// The version that was agreed on, once Hello was exchanged.
    pub(super) version: Option<u8>,
    /// Nothing more is taken from the host; ends when all is sent.
    pub(super) closing: bool,
    /// The host's end of the stream was seen: read until it says how it ended.
    pub(super) hung_up: bool,
    /// Epoll also tells when the socket takes bytes again.
    pub(super) watches_room: bool,
    /// The process that was started on this connection, or that it is attached to.
    pub(super) process: Option<Key>,
    /// There is or was such a process: other requests are not taken any more.
    pub(super) serves_process: bool,
    /// It became one to a program's port: frames are over.
    pub(super) relay: Option<Key>,
    /// It was granted the feeding of that, also if another took over since.
    pub(super) may_feed: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, transport: Transport) -> Self {
        Self {
            socket,
            transport,
            unsent: Vec::new(),
            sent: 0,
            overflowed: false,
            decoder: Self::fresh_decoder(),
            version: None,
            closing: false,
            hung_up: false,
            watches_room: false,
            process: None,
            serves_process: false,
            relay: None,
            may_feed: false,
        }
    }

    /// A decoder at a frame boundary, holding no memory.
    pub(super) fn fresh_decoder() -> FrameDecoder {
        FrameDecoder::new(WIRE, MAX_HOST_MESSAGE)
    }

    /// Takes what has arrived, up to the size of `buffer`.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Received::End(End::HostGone),
                Ok((count, _)) => return Received::Bytes(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Received::Nothing,
                Err(errno) => return Received::End(self.meaning(errno)),
            }
        }
    }

    /// A vsock stream whose host went away ends with a plain 0 or EPIPE, whether by SHUTDOWN or RST; any other error
    /// (ECONNRESET, then ENOTCONN) comes from a transport reset. A Unix socket has no such thing.
    fn meaning(&self, errno: Errno) -> End {
        match self.transport {
            Transport::Vsock if errno != Errno::PIPE => End::TransportReset,
            _ => End::HostGone,
        }
    }

    /// Appends `message` to what is to be sent. One that would pass the cap is dropped, and the next flush hangs up.
    pub(super) fn queue(&mut self, message: &AgentMessage) {
        if self.unsent.len() > MAX_UNSENT || WIRE.append_message(&mut self.unsent, message, MAX_AGENT_MESSAGE).is_err()
        {
            self.overflowed = true;
        }
    }

    /// Bytes that wait to be sent.
    pub(super) fn unsent(&self) -> &[u8] {
        self.unsent.get(self.sent..).unwrap_or_default()
    }

    /// True while bytes wait that the socket would not take: nothing more is to be produced for it.
    pub(super) fn is_stalled(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends `frames`, which are whole; what the socket does not take now is kept. Only for a connection that is not
    /// stalled.
    pub(super) fn transmit(&mut self, frames: &[u8]) -> Result<(), End> {
        let sent = self.send(frames)?;
        if sent < frames.len() {
            // From the beginning of the frame that was cut, so that what waits can still be told apart.
            let begin = frame_ranges(frames).find(|(_, range)| range.end > sent).map_or(sent, |(_, range)| range.start);
            self.unsent.extend_from_slice(&frames[begin..]);
            self.sent = sent - begin;
        }
        Ok(())
    }

    /// Output of its process that the socket never took.
    pub(super) fn unsent_output(&self) -> impl Iterator<Item = (FrameKind, &[u8])> {
        let frames = frame_ranges(&self.unsent).filter(|(kind, _)| *kind != FrameKind::Message);
        frames.filter_map(|(kind, range)| {
            let begin = (range.start + HEADER_LEN).max(self.sent);
            self.unsent.get(begin..range.end).map(|body| (kind, body))
        })
    }

    /// Sends what waits, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        if self.overflowed {
            return Err(End::HostGone);
        }
        let waiting = self.unsent.get(self.sent..).unwrap_or_default();
        if waiting.is_empty() {
            return Ok(());
        }
        self.sent += self.send(waiting)?;
        if self.sent == self.unsent.len() {
            self.sent = 0;
            // The memory is kept: a host that is slow once is slow again, and fresh pages cost more than anything here.
            self.unsent.clear();
        }
        Ok(())
    }

    /// Has closing wait until the VMM confirms it, which it does after it has received everything; a second at most
    /// (net/vmw_vsock/virtio_transport_common.c, virtio_transport_wait_close). Without it closing does not wait.
    pub(super) fn linger(&self) {
        let _ = set_socket_linger(&self.socket, Some(Duration::from_secs(1)));
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, End> {
        loop {
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => return Ok(count.min(bytes.len())),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(errno) => return Err(self.meaning(errno)),
            }
        }
    }
}

/// Kind and place of each frame in `frames`.
fn frame_ranges(frames: &[u8]) -> impl Iterator<Item = (FrameKind, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let header = frames.get(start..)?.first_chunk::<HEADER_LEN>()?;
        // They are our own: no length is refused here.
        let header = WIRE.parse_header(header, usize::MAX).ok()?;
        let range = start..start + HEADER_LEN + header.len;
        start = range.end;
        Some((header.kind, range))
    })
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::{AgentMessage, Connection, FrameKind, MAX_AGENT_MESSAGE, Transport, WIRE};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_was_not_sent_of_cut_frames_is_told_apart() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours.into(), Transport::Unix);
        let mut frames = Vec::new();
        let all: Vec<u8> = (0..600_000u32).map(|index| (index / 3) as u8).collect();
        for chunk in all.chunks(60_000) {
            frames.extend(WIRE.header(FrameKind::Stdout, chunk.len()).unwrap());
            frames.extend(chunk);
        }
        WIRE.append_message(&mut frames, &AgentMessage::Pong, MAX_AGENT_MESSAGE).unwrap();
        connection.transmit(&frames).unwrap();
        assert!(connection.is_stalled());
        let mut got = vec![0; 30_000];
        theirs.read_exact(&mut got).unwrap();
        connection.flush().unwrap();
        let unsent: Vec<u8> = connection.unsent_output().flat_map(|(_, body)| body.to_vec()).collect();
        assert!(!unsent.is_empty() && all.ends_with(&unsent));
        // The socket has all the rest, headers included.
        drop(connection);
        theirs.read_to_end(&mut got).unwrap();
        assert!(frames.starts_with(&got));
        let frame = 60_008;
        let sent_of_last = got.len() % frame;
        assert_eq!(all.len() - unsent.len(), got.len() / frame * 60_000 + sent_of_last.saturating_sub(8));
    }
}
