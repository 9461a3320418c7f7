//! Connections of hosts to programs in the guest: a host's connection on one side, a TCP connection to the guest's own
//! loopback on the other, bytes in between, each direction with an end of its own.
//!
//! ```text
//! Connect ──> Dialling ──refused, 127.0.0.1──> Dialling, ::1 ──refused──> Failed
//!                └──────────────connected──────────┴──────────> Open ──both directions over──> gone
//! ```
//! A direction reads only while nothing waits to be sent, so a side that takes nothing stalls the other, and one chunk is
//! all that is held. Either side may end its stream and go on reading. Programs and hosts are equally free to misbehave:
//! what one of them does ends this relay and touches no other.

use super::Server;
use super::connection::End;
use super::requests::{Outcome, bad_request, internal};
use super::slab::Key;
use super::token::Token;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Ipv4Addr, Ipv6Addr, RecvFlags, SendFlags, Shutdown, SocketAddrV4, SocketAddrV6, SocketFlags,
    SocketType, connect, recv, send, shutdown, socket_with, sockopt,
};
use sandboxvm_protocol::agent::port::{PortNumber, PortRequest};
use sandboxvm_protocol::agent::{AgentMessage, Failure, FailureKind};
use std::os::fd::{AsFd, OwnedFd};

/// Most relays at a time.
pub(super) const MAX_RELAYS: u32 = 256;

/// Read at a time, and the most that is held in each direction.
const CHUNK: usize = 32 * 1024;

/// Chunks moved in each direction in one turn: the others' turn comes then.
const CHUNKS_PER_TURN: usize = 4;

/// A host's connection to a program.
#[derive(Debug)]
pub(super) struct Relay {
    /// The host's.
    connection: Key,
    port: PortNumber,
    program: OwnedFd,
    stage: Stage,
    /// What came of dialling.
    dialled: Option<Dialled>,
    to_program: Stream,
    to_host: Stream,
    is_due: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// 127.0.0.1 was asked.
    Dialling,
    /// ::1 was asked.
    DiallingV6,
    Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialled {
    Connected,
    Failed,
}

/// One direction.
#[derive(Debug, Default)]
struct Stream {
    /// An event said so, and no read has come up empty since.
    readable: bool,
    /// The source has ended its stream.
    ended: bool,
    /// What the sink would not take yet.
    pending: Vec<u8>,
    /// So much of that it took.
    sent: usize,
    /// The end was passed on, or nobody takes anything any more.
    over: bool,
}

/// Which side of a direction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Source,
    Sink,
}

impl Stream {
    /// Moves some of what there is; true when there may be more at once.
    fn pump(&mut self, source: impl AsFd, sink: impl AsFd, buffer: &mut [u8]) -> Result<bool, Broken> {
        let room = buffer.len().min(CHUNK);
        let buffer = &mut buffer[..room];
        for _ in 0..CHUNKS_PER_TURN {
            if self.over || !self.flush(&sink)? {
                return Ok(false);
            }
            if self.ended {
                // Fails only when the sink is gone, which is as good.
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

    /// Sends what waits; true when nothing does any more.
    fn flush(&mut self, sink: impl AsFd) -> Result<bool, Broken> {
        if self.pending.is_empty() {
            return Ok(true);
        }
        self.sent += send_some(sink, self.pending.get(self.sent..).unwrap_or_default())?;
        if self.sent < self.pending.len() {
            return Ok(false);
        }
        // The memory goes with it: there may be many of these, and few are slow at a time.
        (self.pending, self.sent) = (Vec::new(), 0);
        Ok(true)
    }

    /// Nobody takes it any more.
    fn give_up(&mut self) {
        *self = Self { over: true, ended: true, ..Self::default() };
    }
}

fn send_some(sink: impl AsFd, bytes: &[u8]) -> Result<usize, Broken> {
    loop {
        match send(&sink, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => return Ok(count.min(bytes.len())),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(_) => return Err(Broken::Sink),
        }
    }
}

/// A connection under way to a port of the loopback.
fn dial(port: PortNumber, stage: Stage) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if stage == Stage::DiallingV6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // What one side sends in one piece is not to wait for the other's acknowledgement.
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

impl Server {
    /// Begins to make a connection one to a program.
    pub(super) fn connect(&mut self, key: Key, request: PortRequest) -> Outcome {
        match self.connections.get_mut(key) {
            Some(connection) if connection.process.is_some() => {
                return Err(bad_request("this connection has a process; open another"));
            }
            Some(_) => {}
            None => return Ok(()),
        }
        let port = request.port;
        let (program, stage) = match dial(port, Stage::Dialling) {
            Ok(program) => (program, Stage::Dialling),
            Err(Errno::CONNREFUSED) => {
                let program = dial(port, Stage::DiallingV6).map_err(|_| refused(port))?;
                (program, Stage::DiallingV6)
            }
            Err(errno) => return Err(failure(port, errno)),
        };
        let (to_program, to_host) = (Stream::default(), Stream::default());
        let relay = Relay { connection: key, port, program, stage, dialled: None, to_program, to_host, is_due: false };
        let Ok(relay_key) = self.relays.insert(relay) else {
            let message =
                format!("the guest's agent keeps {MAX_RELAYS} connections to ports at a time; end some first");
            return Err(Failure { kind: FailureKind::Resources, message });
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.relay = Some(relay_key);
        }
        // What comes of it is an event.
        self.watch_program(relay_key).map_err(|errno| internal(format!("cannot watch port {port}: {errno}")))
    }

    fn watch_program(&mut self, key: Key) -> Result<(), Errno> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &relay.program, epoll::EventData::new_u64(Token::Relay(key).pack()), flags)
    }

    pub(super) fn becomes_relay(&mut self, key: Key) -> bool {
        self.connections.get_mut(key).is_some_and(|connection| connection.relay.is_some())
    }

    /// Drops the relay of a connection, if it has one.
    pub(super) fn end_relay_of(&mut self, key: Key) {
        if let Some(relay) = self.connections.get_mut(key).and_then(|connection| connection.relay.take()) {
            self.relays.remove(relay);
        }
    }

    pub(super) fn make_relay_due(&mut self, key: Key) {
        if let Some(relay) = self.relays.get_mut(key)
            && !relay.is_due
        {
            relay.is_due = true;
            self.relays_due.push(key);
        }
    }

    /// Something happened to the host's side.
    pub(super) fn note_host(&mut self, key: Key, flags: epoll::EventFlags) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let gone = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if relay.stage == Stage::Open {
            relay.to_program.readable = true;
            if gone {
                // What it sent before is still the program's.
                relay.to_host.give_up();
            }
        } else if gone || flags.intersects(epoll::EventFlags::RDHUP) {
            let connection = relay.connection;
            return self.disconnect(connection, End::HostGone);
        }
        self.make_relay_due(key);
    }

    /// Something happened to the program's side.
    pub(super) fn note_program(&mut self, key: Key, flags: epoll::EventFlags) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        if relay.stage == Stage::Open {
            relay.to_host.readable = true;
            if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                // What it sent before is still the host's.
                relay.to_program.give_up();
            }
        } else if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            relay.dialled = Some(Dialled::Failed);
        } else if flags.intersects(epoll::EventFlags::OUT) {
            // A socket takes bytes only once it is connected.
            relay.dialled = Some(Dialled::Connected);
        }
        self.make_relay_due(key);
    }

    /// Moves what can be moved of one relay, once.
    pub(super) fn serve_relay(&mut self, key: Key) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.is_due = false;
        if relay.stage != Stage::Open {
            self.look_at_dial(key);
            return;
        }
        let host = relay.connection;
        // The answer that opened it may still be on its way.
        self.flush(host);
        let Some(relay) = self.relays.get_mut(key) else { return };
        let Some(connection) = self.connections.get_mut(host) else { return };
        let mut more = false;
        match relay.to_program.pump(&*connection, &relay.program, &mut self.scratch) {
            Ok(again) => more |= again,
            // The program takes no more; what it sends still counts.
            Err(Broken::Sink) => relay.to_program.give_up(),
            // The transport was reset, or the host broke off.
            Err(Broken::Source) => return self.disconnect(host, End::HostGone),
        }
        if !connection.is_stalled() {
            match relay.to_host.pump(&relay.program, &*connection, &mut self.scratch) {
                Ok(again) => more |= again,
                Err(Broken::Sink) => relay.to_host.give_up(),
                Err(Broken::Source) => return self.disconnect(host, End::HostGone),
            }
        }
        // A host that is gone ends its stream as one that only has nothing more to say: sending tells them apart.
        if relay.to_program.ended && !relay.to_host.over && send_some(&*connection, &[]).is_err() {
            relay.to_host.give_up();
        }
        if relay.to_program.over && relay.to_host.over {
            self.disconnect(host, End::HostGone);
            return;
        }
        let stalled = !relay.to_host.pending.is_empty();
        if stalled {
            self.watch_room(host);
        }
        if more {
            self.make_relay_due(key);
        }
    }

    /// Sees whether the program has answered.
    fn look_at_dial(&mut self, key: Key) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let (host, port, stage) = (relay.connection, relay.port, relay.stage);
        let outcome = match relay.dialled.take() {
            None => return,
            Some(Dialled::Connected) => Ok(()),
            Some(Dialled::Failed) => {
                // It hung up without an error: as if it had said no.
                Err(sockopt::socket_error(&relay.program).and_then(|said| said).err().unwrap_or(Errno::CONNREFUSED))
            }
        };
        match outcome {
            Ok(()) => {
                relay.stage = Stage::Open;
                relay.to_program.readable = true;
                relay.to_host.readable = true;
                if let Some(connection) = self.connections.get_mut(host) {
                    connection.queue(&AgentMessage::Connected);
                }
                self.make_relay_due(key);
            }
            Err(Errno::CONNREFUSED) if stage == Stage::Dialling => match dial(port, Stage::DiallingV6) {
                Ok(program) => {
                    (relay.program, relay.stage) = (program, Stage::DiallingV6);
                    if let Err(errno) = self.watch_program(key) {
                        self.refuse(host, failure(port, errno));
                    }
                }
                Err(_) => self.refuse(host, refused(port)),
            },
            Err(errno) => self.refuse(host, failure(port, errno)),
        }
    }

    fn refuse(&mut self, key: Key, failure: Failure) {
        self.fail(key, failure);
        self.flush(key);
    }
}

fn refused(port: PortNumber) -> Failure {
    let message = format!("nothing in the sandbox listens on port {port} of 127.0.0.1");
    Failure { kind: FailureKind::ConnectionRefused, message }
}

fn failure(port: PortNumber, errno: Errno) -> Failure {
    match errno {
        Errno::CONNREFUSED => refused(port),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::ADDRNOTAVAIL => {
            let message = format!("the guest has no room for a connection to port {port}: {errno}");
            Failure { kind: FailureKind::Resources, message }
        }
        errno => internal(format!("cannot connect to port {port} of the guest: {errno}")),
    }
}
