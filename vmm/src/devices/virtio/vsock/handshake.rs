//! Clients that have connected and not yet said which port of the guest they want: one line, `CONNECT <port>\n`.

use super::{
    deadlines::Expiry,
    limits::Limits,
    mux::Watch,
    packet::GuestPort,
    poller::{HandshakeId, Token},
};
use rustix::{io::Errno, net::RecvFlags};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

/// Longest line accepted, its end included.
const MAX_LINE: usize = 32;

/// What a client's line came to.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is not complete.
    Wait,
    /// It asks for a port.
    Dial(OwnedFd, GuestPort),
    /// It is none, or the client left: the connection was closed.
    Closed,
}

/// Clients in the middle of their line.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    clients: BTreeMap<HandshakeId, (OwnedFd, Instant)>,
    next: u32,
}

impl Handshakes {
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Begins with a client just accepted.
    pub(super) fn begin(&mut self, client: OwnedFd, limits: &Limits, watch: &mut Watch<'_>) -> io::Result<HandshakeId> {
        let id = HandshakeId(self.next);
        self.next = self.next.wrapping_add(1);
        watch.poller.watch_client(&client, Token::Handshake(id))?;
        let deadline = watch.deadlines.set(watch.poller, limits.handshake_timeout, Expiry::Handshake(id))?;
        self.clients.insert(id, (client, deadline));
        Ok(id)
    }

    /// A client wrote, or `ended` its stream.
    pub(super) fn progress(&mut self, id: HandshakeId, ended: bool, watch: &mut Watch<'_>) -> Answer {
        let Some((client, _)) = self.clients.get(&id) else { return Answer::Wait };
        let line = match read_line(client) {
            Ok(Some(line)) => line,
            Ok(None) if !ended => return Answer::Wait,
            Ok(None) | Err(_) => {
                self.close(id, watch);
                return Answer::Closed;
            }
        };
        let Some((client, deadline)) = self.clients.remove(&id) else { return Answer::Closed };
        watch.deadlines.clear(deadline, Expiry::Handshake(id));
        match parse_line(&line) {
            Some(port) => Answer::Dial(client, port),
            None => {
                watch.poller.forget(&client);
                Answer::Closed
            }
        }
    }

    /// Closes a client: it took too long.
    pub(super) fn close(&mut self, id: HandshakeId, watch: &mut Watch<'_>) {
        if let Some((client, deadline)) = self.clients.remove(&id) {
            watch.deadlines.clear(deadline, Expiry::Handshake(id));
            watch.poller.forget(&client);
        }
    }

    /// Closes all clients.
    pub(super) fn close_all(&mut self, watch: &mut Watch<'_>) {
        while let Some((&id, _)) = self.clients.first_key_value() {
            self.close(id, watch);
        }
    }
}

/// Takes a whole line out of the socket, and not a byte of what the client wrote after it.
///
/// # Errors
/// When there will be none: the client left, or wrote too much without an end of line.
fn read_line(client: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut seen = [0; MAX_LINE];
    let seen = match receive(client, &mut seen, RecvFlags::PEEK) {
        Err(Errno::AGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => &seen[..count],
    };
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if seen.len() == MAX_LINE { Err(io::ErrorKind::InvalidData.into()) } else { Ok(None) };
    };
    let mut line = vec![0; end + 1];
    let taken = receive(client, &mut line, RecvFlags::empty())?;
    // Peeked bytes do not go away, but a client that passes descriptors along can make a read end early.
    if taken == line.len() { Ok(Some(line)) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn receive(client: impl AsFd, into: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
    loop {
        match rustix::net::recv(&client, &mut *into, flags | RecvFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            result => return result.map(|(count, _)| count),
        }
    }
}

fn parse_line(line: &[u8]) -> Option<GuestPort> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port = std::str::from_utf8(digits).ok()?.parse().ok()?;
    // No client can connect to VMADDR_PORT_ANY.
    (port != u32::MAX).then_some(GuestPort(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_decimal_port_is_accepted() {
        assert_eq!(parse_line(b"CONNECT 1024\n"), Some(GuestPort(1024)));
        assert_eq!(parse_line(b"CONNECT 0\n"), Some(GuestPort(0)));
        assert_eq!(parse_line(b"CONNECT 4294967294\n"), Some(GuestPort(u32::MAX - 1)));
        for bad in [
            "CONNECT 4294967295\n",
            "CONNECT 4294967296\n",
            "CONNECT \n",
            "CONNECT\n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 1024\r\n",
            "CONNECT  1024\n",
            "connect 1024\n",
            "CONNECT 0x10\n",
            "\n",
            "CONNECT 1 2\n",
        ] {
            assert_eq!(parse_line(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
