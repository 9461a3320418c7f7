//! All connections of one device: who gets which packet from the guest, and whose packet goes to the guest next.
//!
//! Knows sockets and packets, not queues: [`super::device`] brings the packets of the transmit queue here and fills
//! receive buffers with what [`Mux::next_packet`] gives.

use super::{
    connection::{Connection, Outcome, Phase},
    deadlines::{Deadlines, Expiry},
    limits::Limits,
    packet::{GuestPort, HEADER_SIZE, HOST_CID, Header, HostPort, Operation, TYPE_STREAM},
    poller::{Poller, Readiness, Token},
    ports::HostPorts,
};
use crate::devices::virtio::{chain::Buffers, transfer::Part};
use sandboxvm_protocol::ids::GuestCid;
use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    time::Duration,
};

/// What a connection needs from the rest of the device to be driven.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    pub(super) poller: &'a Poller,
    pub(super) deadlines: &'a mut Deadlines,
}

/// The connections of one device.
#[derive(Debug)]
pub(super) struct Mux {
    cid: GuestCid,
    limits: Limits,
    ports: HostPorts,
    connections: BTreeMap<HostPort, Connection>,
    /// RST packets for addresses without a connection, at most `limits.replies`.
    replies: VecDeque<Header>,
    /// Connections with a packet for the guest; each has one turn at a time.
    runnable: VecDeque<HostPort>,
    /// While a transport reset is under way, packets for unknown connections are leftovers of old ones. A RST would let
    /// their owners read a proper end of the stream where they must see a connection reset.
    pub(super) swallow_unknown: bool,
}

impl Mux {
    pub(super) fn new(cid: GuestCid, limits: Limits, ports: HostPorts) -> Self {
        Self {
            cid,
            limits,
            ports,
            connections: BTreeMap::new(),
            replies: VecDeque::new(),
            runnable: VecDeque::new(),
            swallow_unknown: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// See [`HostPorts::next`].
    pub(super) fn next_port(&self) -> u32 {
        self.ports.next()
    }

    /// Asks the guest for a connection to `port` for `client`. The caller has checked the limit of connections.
    pub(super) fn dial(&mut self, client: OwnedFd, port: GuestPort, watch: &mut Watch<'_>) -> std::io::Result<()> {
        let connections = &self.connections;
        let host_port = self.ports.allocate(|port| connections.contains_key(&port));
        watch.poller.rewatch_client(&client, Token::Connection(host_port), false)?;
        let window = Limits::window(self.connections.len());
        let mut connection = Connection::new(client, self.cid, port, host_port, window);
        set_deadline(&mut connection, host_port, Some(self.limits.response_timeout), watch)?;
        self.connections.insert(host_port, connection);
        self.schedule(host_port);
        Ok(())
    }

    /// A packet from the guest.
    pub(super) fn guest_packet(&mut self, packet: &mut Buffers<'_>, watch: &mut Watch<'_>) {
        let mut header = [0; HEADER_SIZE];
        // Read once: what the guest changes in it later is not seen. Too short, it cannot be answered.
        if packet.read(&mut header) < HEADER_SIZE {
            return;
        }
        let header = Header::decode(&header);
        // Not this guest's address; an answer would not reach it.
        if header.source.cid != u64::from(self.cid.get()) {
            return;
        }
        let host_port = HostPort(header.destination.port);
        let known = header.destination.cid == HOST_CID && header.socket_type == TYPE_STREAM;
        let Some(connection) = self.connections.get_mut(&host_port).filter(|connection| {
            known && connection.guest_port() == GuestPort(header.source.port) && connection.phase() != Phase::Draining
        }) else {
            return self.refuse(&header);
        };
        let outcome = match Operation::from_wire(header.operation) {
            Some(operation) => connection.packet(&header, operation, Part::from(packet, 0)),
            None => Outcome::Reset,
        };
        self.settle(host_port, outcome, watch);
    }

    /// Something happened to a client's socket.
    pub(super) fn client_ready(&mut self, port: HostPort, readiness: Readiness, watch: &mut Watch<'_>) {
        // Events of a socket that was closed since they were collected find no connection: ports do not come back soon.
        if let Some(connection) = self.connections.get_mut(&port) {
            let outcome = connection.client_ready(readiness);
            self.settle(port, outcome, watch);
        }
    }

    /// The deadline of a connection has passed.
    pub(super) fn expired(&mut self, port: HostPort, watch: &mut Watch<'_>) {
        let Some(connection) = self.connections.get_mut(&port) else { return };
        connection.deadline = None;
        let outcome = match connection.phase() {
            Phase::Requesting => Outcome::Gone,
            Phase::Established if connection.progress() != connection.progress_mark => Outcome::Continue,
            _ => Outcome::Reset,
        };
        self.settle(port, outcome, watch);
    }

    /// Whether [`Mux::next_packet`] may have one.
    pub(super) fn has_packet(&self) -> bool {
        !self.replies.is_empty() || !self.runnable.is_empty()
    }

    /// The next packet for the guest, in turn over all connections; its payload is put into `payload`, which is not empty.
    pub(super) fn next_packet(&mut self, payload: Part<'_, '_>, watch: &mut Watch<'_>) -> Option<Header> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        while let Some(port) = self.runnable.pop_front() {
            let Some(connection) = self.connections.get_mut(&port) else { continue };
            connection.scheduled = false;
            let header = connection.next_packet(payload);
            self.settle(port, Outcome::Continue, watch);
            if header.is_some() {
                return header;
            }
        }
        None
    }

    /// Ends all connections without a word to the guest.
    pub(super) fn disconnect_all(&mut self, watch: &mut Watch<'_>) {
        for (port, connection) in std::mem::take(&mut self.connections) {
            discard(port, connection, watch);
        }
        self.replies.clear();
        self.runnable.clear();
    }

    /// Does what an event asks for, and brings the connection's registrations in line with its state.
    fn settle(&mut self, port: HostPort, outcome: Outcome, watch: &mut Watch<'_>) {
        let Some(connection) = self.connections.get(&port) else { return };
        let draining = connection.phase() == Phase::Draining;
        let (answer, over) = match outcome {
            Outcome::Continue => (false, false),
            Outcome::Gone => (false, true),
            Outcome::Reset => (!draining, true),
            Outcome::EndedByGuest { answer } => (answer, !draining),
        };
        if answer {
            let reset = connection.reset_header();
            self.reply(reset);
        }
        if (over || self.update(port, watch).is_err())
            && let Some(connection) = self.connections.remove(&port)
        {
            if connection.scheduled {
                self.runnable.retain(|other| *other != port);
            }
            discard(port, connection, watch);
        }
    }

    /// # Errors
    /// When the kernel refuses to watch the client any longer; the connection cannot continue.
    fn update(&mut self, port: HostPort, watch: &mut Watch<'_>) -> std::io::Result<()> {
        let Some(connection) = self.connections.get_mut(&port) else { return Ok(()) };
        if connection.phase() == Phase::Closing && connection.client().is_some() {
            close_client(connection, watch);
            set_deadline(connection, port, Some(self.limits.close_timeout), watch)?;
        }
        let wants_room = connection.wants_room();
        if wants_room != connection.watched_for_room
            && let Some(client) = connection.client()
        {
            watch.poller.rewatch_client(client, Token::Connection(port), wants_room)?;
            connection.watched_for_room = wants_room;
        }
        if matches!(connection.phase(), Phase::Established | Phase::Draining) {
            if !connection.lingers() {
                set_deadline(connection, port, None, watch)?;
            } else if connection.deadline.is_none() {
                set_deadline(connection, port, Some(self.limits.linger_timeout), watch)?;
            }
        }
        if connection.has_packet() {
            self.schedule(port);
        }
        Ok(())
    }

    fn schedule(&mut self, port: HostPort) {
        if let Some(connection) = self.connections.get_mut(&port)
            && !connection.scheduled
        {
            connection.scheduled = true;
            self.runnable.push_back(port);
        }
    }

    /// Answers a packet that belongs to no connection. That includes every REQUEST: the host dials, the guest does not.
    fn refuse(&mut self, header: &Header) {
        if Operation::from_wire(header.operation) != Some(Operation::Reset) && !self.swallow_unknown {
            self.reply(header.refusal());
        }
    }

    fn reply(&mut self, header: Header) {
        if self.replies.len() < self.limits.replies {
            self.replies.push_back(header);
        }
    }

    /// Bytes held for clients and memory allocated for them, over all connections.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        self.connections.values().map(Connection::held).fold((0, 0), |sum, held| (sum.0 + held.0, sum.1 + held.1))
    }

    /// Entries in the two queues towards the guest.
    #[cfg(test)]
    pub(super) fn queued(&self) -> (usize, usize) {
        (self.replies.len(), self.runnable.len())
    }
}

fn discard(port: HostPort, mut connection: Connection, watch: &mut Watch<'_>) {
    close_client(&mut connection, watch);
    if let Some(at) = connection.deadline {
        watch.deadlines.clear(at, Expiry::Connection(port));
    }
}

fn close_client(connection: &mut Connection, watch: &Watch<'_>) {
    if let Some(client) = connection.part_with_client() {
        watch.poller.forget(&client);
    }
    connection.watched_for_room = false;
}

/// Replaces the connection's deadline.
fn set_deadline(
    connection: &mut Connection,
    port: HostPort,
    delay: Option<Duration>,
    watch: &mut Watch<'_>,
) -> std::io::Result<()> {
    let expiry = Expiry::Connection(port);
    if let Some(old) = connection.deadline.take() {
        watch.deadlines.clear(old, expiry);
    }
    connection.progress_mark = connection.progress();
    connection.deadline = delay.map(|delay| watch.deadlines.set(watch.poller, delay, expiry)).transpose()?;
    Ok(())
}
