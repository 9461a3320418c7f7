//! A relay between a host and a program in the guest as data: its two directions, and the
//! connection to a port of the loopback. The parent module moves the bytes.

use crate::server::answer::internal;
use crate::slab::Key;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Ipv4Addr, Ipv6Addr, RecvFlags, SendFlags, Shutdown, SocketAddrV4, SocketAddrV6, SocketFlags,
    SocketType, connect, recv, send, shutdown, socket_with, sockopt,
};
use sandboxvm_protocol::agent::port::PortNumber;
use sandboxvm_protocol::agent::{Failure, FailureKind};
use std::os::fd::{AsFd, OwnedFd};

/// Maximum number of relays.
pub(in crate::server) const MAX_RELAYS: u32 = 256;

/// Size of a read, and maximum number of bytes that are stored in each direction.
const CHUNK: usize = 32 * 1024;

/// Number of chunks that are moved in each direction in one turn, before other relays are served.
const CHUNKS_PER_TURN: usize = 4;

/// A connection of a host to a program.
#[derive(Debug)]
pub(in crate::server) struct Relay {
    /// The connection of the host.
    pub(super) connection: Key,
    pub(super) port: PortNumber,
    pub(super) program: OwnedFd,
    pub(super) stage: Stage,
    /// The result of dialling.
    pub(super) dialled: Option<Dialled>,
    pub(super) to_program: Stream,
    pub(super) to_host: Stream,
    pub(super) is_due: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Connecting to 127.0.0.1.
    Dialling,
    /// Connecting to ::1.
    DiallingV6,
    Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialled {
    Connected,
    Failed,
}

/// One direction of a relay.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Whether an event reported bytes, and no read has returned nothing since.
    pub(super) readable: bool,
    /// Whether the source has ended its stream.
    pub(super) ended: bool,
    /// Bytes that the sink has not accepted yet.
    pub(super) pending: Vec<u8>,
    /// How many of those bytes the sink has accepted.
    sent: usize,
    /// Whether the end was passed on, or the sink accepts nothing any more.
    pub(super) over: bool,
}

/// The side of a direction that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Source,
    Sink,
}

impl Stream {
    /// Moves some of the pending bytes. Returns true if more can be moved immediately.
    pub(super) fn pump(&mut self, source: impl AsFd, sink: impl AsFd, buffer: &mut [u8]) -> Result<bool, Broken> {
        let room = buffer.len().min(CHUNK);
        let buffer = &mut buffer[..room];
        for _ in 0..CHUNKS_PER_TURN {
            if self.over || !self.flush(&sink)? {
                return Ok(false);
            }
            if self.ended {
                // Fails only if the sink is gone, which has the same effect.
                let _ = shutdown(&sink, Shutdown::Write);
                self.over = true;
                return Ok(false);
            }
            if !self.readable {
                return Ok(false);
            }
            match recv(&source, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.ended = true,
                Ok((count, _)) => {
                    let count = count.min(room);
                    let sent = send_some(&sink, &buffer[..count])?;
                    self.pending.extend_from_slice(&buffer[sent..count]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(_) => return Err(Broken::Source),
            }
        }
        Ok(true)
    }

    /// Sends pending bytes. Returns true if none are left.
    fn flush(&mut self, sink: impl AsFd) -> Result<bool, Broken> {
        if self.pending.is_empty() {
            return Ok(true);
        }
        self.sent += send_some(sink, self.pending.get(self.sent..).unwrap_or_default())?;
        if self.sent < self.pending.len() {
            return Ok(false);
        }
        // Releases the memory too, because there may be many relays, of which few are slow at a
        // time.
        (self.pending, self.sent) = (Vec::new(), 0);
        Ok(true)
    }

    /// Drops this direction, because its sink accepts nothing any more.
    pub(super) fn give_up(&mut self) {
        *self = Self { over: true, ended: true, ..Self::default() };
    }
}

pub(super) fn send_some(sink: impl AsFd, bytes: &[u8]) -> Result<usize, Broken> {
    loop {
        match send(&sink, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => return Ok(count.min(bytes.len())),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(_) => return Err(Broken::Sink),
        }
    }
}

/// Starts to connect to a port of the loopback.
pub(super) fn dial(port: PortNumber, stage: Stage) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if stage == Stage::DiallingV6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Data of one side are sent without waiting for the acknowledgement of the other.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let dialled = match stage {
        Stage::DiallingV6 => connect(&socket, &SocketAddrV6::new(Ipv6Addr::LOCALHOST, port.get(), 0, 0)),
        _ => connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port.get())),
    };
    match dialled {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

pub(super) fn refused(port: PortNumber) -> Failure {
    let message = format!("nothing in the sandbox listens on port {port} of 127.0.0.1");
    Failure { kind: FailureKind::ConnectionRefused, message }
}

pub(super) fn failure(port: PortNumber, errno: Errno) -> Failure {
    match errno {
        Errno::CONNREFUSED => refused(port),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::ADDRNOTAVAIL => {
            let message = format!("the guest has no room for a connection to port {port}: {errno}");
            Failure { kind: FailureKind::Resources, message }
        }
        errno => internal(format!("cannot connect to port {port} of the guest: {errno}")),
    }
}
