//! One connection of a host: received bytes, frames to send, and the meaning of its end.
//!
//! Owns the socket, the partial frame that was received, and the bytes that the socket did not
//! accept. The latter are at most what one turn of the server produced, because a turn reads from a
//! process only if nothing is left from the last one. Knows nothing about processes except a key.

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

/// Maximum size in bytes of replies for a host that sends requests and reads nothing. Beyond it the
/// connection is closed.
const MAX_UNSENT: usize = 256 * 1024;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The host closed it or ended.
    HostGone,
    /// The transport was reset: this is a restored or forked machine, and the host of this stream
    /// has another connection.
    TransportReset,
}

/// The result of one receive.
#[derive(Debug)]
pub(super) enum Received {
    /// The number of bytes that were received.
    Bytes(usize),
    /// There are no bytes now.
    Nothing,
    /// There are no more bytes.
    End(End),
}

/// A connection of a host.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    transport: Transport,
    unsent: Vec<u8>,
    sent: usize,
    overflowed: bool,
    /// Splits received bytes into frames.
    pub(super) decoder: FrameDecoder,
    /// The agreed version, after the exchange of Hello.
    pub(super) version: Option<u8>,
    /// Whether nothing more is received. The connection is closed when everything is sent.
    pub(super) closing: bool,
    /// Whether the end of the host's stream was reported. It is then read until it is known how it
    /// ended.
    pub(super) hung_up: bool,
    /// Whether epoll also reports when the socket accepts bytes again.
    pub(super) watches_room: bool,
    /// The process that was started on this connection, or to which it is attached.
    pub(super) process: Option<Key>,
    /// Whether there is or was such a process. Other requests are not accepted then.
    pub(super) serves_process: bool,
    /// The relay, if it became a connection to a port. Then it has no more frames.
    pub(super) relay: Option<Key>,
    /// Whether it was allowed to feed the process. This stays true if another connection has taken
    /// over.
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

    /// Returns a decoder at a frame boundary, without memory.
    pub(super) fn fresh_decoder() -> FrameDecoder {
        FrameDecoder::new(WIRE, MAX_HOST_MESSAGE)
    }

    /// Receives bytes, up to the size of `buffer`.
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

    /// Returns what an error means. A vsock stream ends with 0 or EPIPE if the host closed it, by
    /// SHUTDOWN or RST. Any other error (ECONNRESET, then ENOTCONN) is a transport reset. A Unix
    /// socket has no such reset.
    fn meaning(&self, errno: Errno) -> End {
        match self.transport {
            Transport::Vsock if errno != Errno::PIPE => End::TransportReset,
            _ => End::HostGone,
        }
    }

    /// Queues `message`. If it exceeds the maximum, it is dropped, and the next flush closes the
    /// connection.
    pub(super) fn queue(&mut self, message: &AgentMessage) {
        if self.unsent.len() > MAX_UNSENT || WIRE.append_message(&mut self.unsent, message, MAX_AGENT_MESSAGE).is_err()
        {
            self.overflowed = true;
        }
    }

    /// Returns the bytes that wait to be sent.
    pub(super) fn unsent(&self) -> &[u8] {
        self.unsent.get(self.sent..).unwrap_or_default()
    }

    /// Returns true while the socket has not accepted all bytes. Nothing more may be produced for
    /// it then.
    pub(super) fn is_stalled(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends `frames`, which must be complete. Bytes that the socket does not accept now are
    /// stored. Only for a connection that is not stalled.
    pub(super) fn transmit(&mut self, frames: &[u8]) -> Result<(), End> {
        let sent = self.send(frames)?;
        if sent < frames.len() {
            // Stores from the beginning of the incomplete frame, so that the frames can still be
            // distinguished.
            let begin = frame_ranges(frames).find(|(_, range)| range.end > sent).map_or(sent, |(_, range)| range.start);
            self.unsent.extend_from_slice(&frames[begin..]);
            self.sent = sent - begin;
        }
        Ok(())
    }

    /// Returns the output of the process that the socket never accepted.
    pub(super) fn unsent_output(&self) -> impl Iterator<Item = (FrameKind, &[u8])> {
        let frames = frame_ranges(&self.unsent).filter(|(kind, _)| *kind != FrameKind::Message);
        frames.filter_map(|(kind, range)| {
            let begin = (range.start + HEADER_LEN).max(self.sent);
            self.unsent.get(begin..range.end).map(|body| (kind, body))
        })
    }

    /// Sends waiting bytes, as far as the socket accepts them.
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
            // Keeps the memory: a slow host is slow again, and new pages are the most expensive
            // part here.
            self.unsent.clear();
        }
        Ok(())
    }

    /// Makes the close wait until the VMM confirms it, which it does after it has received
    /// everything, or for a second (net/vmw_vsock/virtio_transport_common.c,
    /// virtio_transport_wait_close). Otherwise closing does not wait.
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

/// Returns kind and range of each frame in `frames`.
fn frame_ranges(frames: &[u8]) -> impl Iterator<Item = (FrameKind, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let header = frames.get(start..)?.first_chunk::<HEADER_LEN>()?;
        // The agent wrote these frames, so every length is valid.
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
    fn unsent_output_is_found_in_frames_that_were_sent_in_part() {
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
        // The socket has all other bytes, headers included.
        drop(connection);
        theirs.read_to_end(&mut got).unwrap();
        assert!(frames.starts_with(&got));
        let frame = 60_008;
        let sent_of_last = got.len() % frame;
        assert_eq!(all.len() - unsent.len(), got.len() / frame * 60_000 + sent_of_last.saturating_sub(8));
    }
}
