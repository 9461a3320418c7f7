//! Connections of hosts to programs in the guest: a host's connection on one side, a TCP connection
//! to the guest's loopback on the other. Bytes are moved in between, and each direction is closed
//! separately.
//!
//! ```text
//! Connect ──> Dialling ──refused, 127.0.0.1──> Dialling, ::1 ──refused──> Failed
//!                └──────────────connected──────────┴──────────> Open ──both directions over──> gone
//! ```
//! A direction reads only if nothing waits to be sent. So a side that reads nothing stalls the
//! other, and at most one chunk is stored. Either side may end its stream and keep reading. A
//! program or host that misbehaves ends only its own relay.

mod relay;

pub(super) use relay::{MAX_RELAYS, Relay};

use crate::server::answer::{Outcome, bad_request, internal};
use crate::server::connection::End;
use crate::server::state::Server;
use crate::server::token::Token;
use crate::slab::Key;
use relay::{Broken, Dialled, Stage, Stream, dial, failure, refused, send_some};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt;
use sandboxvm_protocol::agent::port::PortRequest;
use sandboxvm_protocol::agent::{AgentMessage, Failure, FailureKind};

impl Server {
    /// Starts to turn a connection into a relay to a program.
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
        // The result is an event.
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

    /// Handles an event of the host's side.
    pub(super) fn note_host(&mut self, key: Key, flags: epoll::EventFlags) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let gone = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if relay.stage == Stage::Open {
            relay.to_program.readable = true;
            if gone {
                // Data that the host sent before are still passed to the program.
                relay.to_host.give_up();
            }
        } else if gone || flags.intersects(epoll::EventFlags::RDHUP) {
            let connection = relay.connection;
            return self.disconnect(connection, End::HostGone);
        }
        self.make_relay_due(key);
    }

    /// Handles an event of the program's side.
    pub(super) fn note_program(&mut self, key: Key, flags: epoll::EventFlags) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        if relay.stage == Stage::Open {
            relay.to_host.readable = true;
            if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                // Data that the program sent before are still passed to the host.
                relay.to_program.give_up();
            }
        } else if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            relay.dialled = Some(Dialled::Failed);
        } else if flags.intersects(epoll::EventFlags::OUT) {
            // A socket accepts bytes only after it is connected.
            relay.dialled = Some(Dialled::Connected);
        }
        self.make_relay_due(key);
    }

    /// Moves data of one relay, once.
    pub(super) fn serve_relay(&mut self, key: Key) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.is_due = false;
        if relay.stage != Stage::Open {
            self.look_at_dial(key);
            return;
        }
        let host = relay.connection;
        // The response that opened the relay may not be sent yet.
        self.flush(host);
        let Some(relay) = self.relays.get_mut(key) else { return };
        let Some(connection) = self.connections.get_mut(host) else { return };
        let mut more = false;
        match relay.to_program.pump(&*connection, &relay.program, &mut self.scratch) {
            Ok(again) => more |= again,
            // The program reads no more, but its data still count.
            Err(Broken::Sink) => relay.to_program.give_up(),
            // The transport was reset, or the host closed the connection.
            Err(Broken::Source) => return self.disconnect(host, End::HostGone),
        }
        if !connection.is_stalled() {
            match relay.to_host.pump(&relay.program, &*connection, &mut self.scratch) {
                Ok(again) => more |= again,
                Err(Broken::Sink) => relay.to_host.give_up(),
                Err(Broken::Source) => return self.disconnect(host, End::HostGone),
            }
        }
        // The stream of a host that is gone ends as that of a host that only has no more data.
        // Sending distinguishes them.
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

    /// Checks whether the program has accepted the connection.
    fn look_at_dial(&mut self, key: Key) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let (host, port, stage) = (relay.connection, relay.port, relay.stage);
        let outcome = match relay.dialled.take() {
            None => return,
            Some(Dialled::Connected) => Ok(()),
            Some(Dialled::Failed) => {
                // It hung up without an error, which is handled as a refusal.
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
