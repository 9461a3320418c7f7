//! One connection: a client's Unix socket on one side, a stream of packets on the other.
//!
//! ```text
//!              RESPONSE                both directions over: SHUTDOWN(both)          RST
//!  Requested ------------> Established ------------------------------------> Closing ----> gone
//!      |                        |  guest: SHUTDOWN(both) or RST
//!      | RST, timeout           v
//!      +-------> gone       Draining: the guest is through, the client still has bytes to take ----> gone
//! ```
//!
//! A client that ends its stream becomes SHUTDOWN(send) after its last byte, one that left becomes SHUTDOWN(both), so
//! that the guest's program reads an end of file; it sees a connection reset only when the whole transport is reset
//! after a restore. Knows nothing of queues or epoll: [`super::mux`] calls it and acts on what it returns.

mod backlog;
mod credit;

use super::{
    packet::{Address, GuestPort, HOST_CID, Header, HostPort, MAX_PAYLOAD, Operation, Shutdown},
    poller::Readiness,
};
use crate::devices::virtio::transfer::Part;
use backlog::Backlog;
use credit::{ReceiveWindow, SendCredit};
use rustix::net::{SendFlags, Shutdown as HowShut};
use sandboxvm_protocol::ids::GuestCid;
use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// REQUEST is to be sent.
    Requesting,
    /// REQUEST was sent; the guest is to answer.
    Requested,
    Established,
    /// SHUTDOWN of both directions was sent and the client's socket closed; the guest is to answer RST.
    Closing,
    /// The guest has ended the connection and knows no more of it.
    Draining,
}

/// What becomes of a connection after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Outcome {
    /// The connection continues.
    Continue,
    /// It is over, and the guest knows or never knew of it.
    Gone,
    /// It is over, and the guest has yet to receive an RST.
    Reset,
    /// The guest ended it, and waits for a RST if `answer`. Unless it is [`Phase::Draining`] now, it is over.
    EndedByGuest { answer: bool },
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    guest: Address,
    host: Address,
    /// The client; absent when closing.
    client: Option<OwnedFd>,
    phase: Phase,
    credit: SendCredit,
    window: ReceiveWindow,
    backlog: Backlog,
    /// An edge said so and no read has come up empty since.
    client_readable: bool,
    /// The client has not ended its stream.
    client_sends: bool,
    /// The client has not gone and has not shut its receiving side.
    client_receives: bool,
    /// The guest has not said SHUTDOWN(send).
    guest_sends: bool,
    /// The guest has not said SHUTDOWN(receive).
    guest_receives: bool,
    /// What our SHUTDOWN packets said so far.
    announced: Shutdown,
    /// The guest asked for our credit.
    credit_requested: bool,
    /// The epoll set reports room in the client's socket.
    pub(super) watched_for_room: bool,
    /// In the run queue of [`super::mux`].
    pub(super) scheduled: bool,
    /// The deadline that stands.
    pub(super) deadline: Option<Instant>,
    /// [`SendCredit::progress`] when the deadline was set.
    pub(super) progress_mark: u32,
}

impl Connection {
    /// A connection that asks the guest for `guest_port`.
    pub(super) fn new(client: OwnedFd, cid: GuestCid, guest_port: GuestPort, host_port: HostPort, window: u32) -> Self {
        Self {
            guest: Address { cid: cid.get().into(), port: guest_port.0 },
            host: Address { cid: HOST_CID, port: host_port.0 },
            client: Some(client),
            phase: Phase::Requesting,
            credit: SendCredit::default(),
            window: ReceiveWindow::new(window),
            backlog: Backlog::new(window),
            client_readable: false,
            client_sends: true,
            client_receives: true,
            guest_sends: true,
            guest_receives: true,
            announced: Shutdown::default(),
            credit_requested: false,
            watched_for_room: false,
            scheduled: false,
            deadline: None,
            progress_mark: 0,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn guest_port(&self) -> GuestPort {
        GuestPort(self.guest.port)
    }

    pub(super) fn client(&self) -> Option<&OwnedFd> {
        self.client.as_ref()
    }

    /// The client has hung up and only the guest's reading of its last bytes is waited for.
    pub(super) fn lingers(&self) -> bool {
        self.phase == Phase::Established && !self.client_receives
    }

    /// See [`SendCredit::progress`].
    pub(super) fn progress(&self) -> u32 {
        self.credit.progress()
    }

    /// Bytes wait for room in the client's socket.
    pub(super) fn wants_room(&self) -> bool {
        self.client.is_some() && !self.backlog.is_empty()
    }

    /// A packet that belongs to this connection by its addresses and type.
    pub(super) fn packet(&mut self, header: &Header, operation: Operation, payload: Part<'_, '_>) -> Outcome {
        if self.credit.update(header.credit).is_err() {
            return Outcome::Reset;
        }
        match (self.phase, operation) {
            // The caller answers such packets as ones for no connection.
            (Phase::Draining, _) => Outcome::Continue,
            (_, Operation::Reset) => self.ended_by_guest(false),
            (Phase::Requested, Operation::Response) => self.established(),
            (Phase::Established, Operation::ReadWrite) => self.receive(header.length, payload),
            (Phase::Established, Operation::Shutdown) => self.shut_by_guest(Shutdown::from_flags(header.flags)),
            (Phase::Established, Operation::CreditRequest) => {
                self.credit_requested = true;
                Outcome::Continue
            }
            (Phase::Established, Operation::CreditUpdate) => Outcome::Continue,
            // Both sides hung up at the same time.
            (Phase::Closing, Operation::Shutdown) if Shutdown::from_flags(header.flags) == Shutdown::BOTH => {
                Outcome::Reset
            }
            // Sent before our SHUTDOWN was seen.
            (
                Phase::Closing,
                Operation::ReadWrite | Operation::Shutdown | Operation::CreditUpdate | Operation::CreditRequest,
            ) => Outcome::Continue,
            _ => Outcome::Reset,
        }
    }

    fn established(&mut self) -> Outcome {
        self.phase = Phase::Established;
        let line = format!("OK {}\n", self.host.port);
        match self.send_to_client(line.as_bytes()) {
            Ok(sent) if sent == line.len() => {}
            // A fresh socket has room for a line, so the client is gone or is not one to talk to.
            _ => self.client_receives = false,
        }
        Outcome::Continue
    }

    fn receive(&mut self, length: u32, payload: Part<'_, '_>) -> Outcome {
        let truthful = length <= MAX_PAYLOAD && length as usize <= payload.len();
        if !truthful || !self.guest_sends || self.window.receive(length).is_err() {
            return Outcome::Reset;
        }
        let payload = payload.first(length as usize);
        let mut passed = 0;
        if self.client_receives
            && self.backlog.is_empty()
            && payload.len() > 0
            && let Some(client) = &self.client
        {
            match retry(|| payload.send_to(client.as_fd())) {
                Ok(sent) => passed = sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // EFAULT: the guest's memory cannot be read; the bytes cannot be skipped.
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Outcome::Reset,
                Err(_) => self.client_left(),
            }
        }
        if self.client_receives {
            self.window.forward(truncate(passed));
            if passed < payload.len() {
                self.backlog.append(payload.after(passed));
            }
        } else {
            // The client takes nothing any more; a SHUTDOWN that says so is on its way.
            self.window.forward(length);
        }
        Outcome::Continue
    }

    fn shut_by_guest(&mut self, shutdown: Shutdown) -> Outcome {
        self.guest_sends &= !shutdown.sends_no_more;
        self.guest_receives &= !shutdown.receives_no_more;
        if !self.guest_sends && !self.guest_receives {
            return self.ended_by_guest(true);
        }
        if shutdown.receives_no_more {
            self.shut_client(HowShut::Read);
        }
        self.pass_on_end();
        Outcome::Continue
    }

    /// The guest wants no more of this connection; its last bytes may still be on their way to the client.
    fn ended_by_guest(&mut self, answer: bool) -> Outcome {
        if self.wants_room() && self.client_receives {
            self.phase = Phase::Draining;
            self.guest_sends = false;
            self.guest_receives = false;
            self.shut_client(HowShut::Read);
        }
        Outcome::EndedByGuest { answer }
    }

    /// Lets the client read the end of the guest's stream once it has all of it.
    fn pass_on_end(&self) {
        if !self.guest_sends && self.backlog.is_empty() {
            self.shut_client(HowShut::Write);
        }
    }

    fn shut_client(&self, how: HowShut) {
        if let Some(client) = &self.client {
            // Fails only when the client is gone, which its socket reports as well.
            let _ = rustix::net::shutdown(client, how);
        }
    }

    /// Something happened to the client's socket.
    pub(super) fn client_ready(&mut self, readiness: Readiness) -> Outcome {
        self.client_readable |= readiness.readable;
        if readiness.hung_up {
            self.client_left();
        }
        if readiness.writable && self.client_receives {
            self.flush();
        }
        match self.phase {
            Phase::Draining if !self.client_receives || self.backlog.is_empty() => Outcome::Gone,
            // The guest has not heard of it.
            Phase::Requesting if !self.client_receives => Outcome::Gone,
            _ => Outcome::Continue,
        }
    }

    fn client_left(&mut self) {
        self.client_receives = false;
        let dropped = self.backlog.clear();
        self.window.forward(truncate(dropped));
        if !self.guest_receives {
            self.client_sends = false;
        }
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match self.send_to_client(self.backlog.pending()) {
                Ok(sent) => {
                    self.backlog.take(sent);
                    self.window.forward(truncate(sent));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.client_left(),
            }
        }
        self.pass_on_end();
    }

    fn send_to_client(&self, bytes: &[u8]) -> io::Result<usize> {
        let client = self.client.as_ref().ok_or(ErrorKind::NotConnected)?;
        retry(|| Ok(rustix::net::send(client, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?))
    }

    /// Whether [`Connection::next_packet`] may have a packet.
    pub(super) fn has_packet(&self) -> bool {
        match self.phase {
            Phase::Requesting => true,
            Phase::Established => {
                self.can_read_client()
                    || self.shutdown_due().is_some()
                    || self.credit_requested
                    || self.window.update_due()
            }
            Phase::Requested | Phase::Closing | Phase::Draining => false,
        }
    }

    fn can_read_client(&self) -> bool {
        self.client_readable && self.client_sends && self.guest_receives && self.credit.available() > 0
    }

    /// The SHUTDOWN the guest should get, if it should.
    fn shutdown_due(&self) -> Option<Shutdown> {
        // When both streams have ended the client's socket reports a hang-up, so this says both then.
        let wanted = Shutdown { sends_no_more: !self.client_sends, receives_no_more: !self.client_receives };
        (wanted != self.announced).then_some(wanted)
    }

    /// The next packet for the guest, if there is one; data is read straight into `payload`, which is not empty.
    pub(super) fn next_packet(&mut self, payload: Part<'_, '_>) -> Option<Header> {
        if self.phase == Phase::Requesting {
            self.phase = Phase::Requested;
            return Some(self.header(Operation::Request));
        }
        if self.phase != Phase::Established {
            return None;
        }
        if self.can_read_client()
            && let Some(length) = self.read_client(payload)
        {
            self.credit.spend(length);
            return Some(Header { length, ..self.header(Operation::ReadWrite) });
        }
        if let Some(shutdown) = self.shutdown_due() {
            self.announced = shutdown;
            let header = Header { flags: shutdown.to_flags(), ..self.header(Operation::Shutdown) };
            if shutdown == Shutdown::BOTH {
                self.phase = Phase::Closing;
            }
            return Some(header);
        }
        (self.credit_requested || self.window.update_due()).then(|| self.header(Operation::CreditUpdate))
    }

    /// Reads from the client as much as the guest takes; `None` when nothing came.
    fn read_client(&mut self, payload: Part<'_, '_>) -> Option<u32> {
        let client = self.client.as_ref()?;
        let room = payload.first(self.credit.available().min(MAX_PAYLOAD) as usize);
        match retry(|| room.receive_from(client.as_fd())) {
            Ok(0) => self.client_sends = false,
            Ok(received) => return Some(truncate(received)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.client_readable = false,
            // The client closed its socket with bytes of ours unread.
            Err(_) => {
                self.client_sends = false;
                self.client_left();
            }
        }
        None
    }

    fn header(&mut self, operation: Operation) -> Header {
        self.credit_requested = false;
        Header { credit: self.window.announce(), ..Header::new(self.host, self.guest, operation) }
    }

    /// The RST for this connection.
    pub(super) fn reset_header(&self) -> Header {
        Header::new(self.host, self.guest, Operation::Reset)
    }

    /// Gives up the client's socket, after dropping what the client wrote and will not be read: a close with bytes unread
    /// would give the client an error instead of the end of the stream.
    pub(super) fn part_with_client(&mut self) -> Option<OwnedFd> {
        self.shut_client(HowShut::Both);
        let client = self.client.take()?;
        let mut scrap = [0; 4096];
        // A socket buffer holds far less; the bound is there so that none can hold us up.
        for _ in 0..1024 {
            match rustix::net::recv(&client, &mut scrap, rustix::net::RecvFlags::DONTWAIT) {
                Ok((read, _)) if read > 0 => {}
                _ => break,
            }
        }
        Some(client)
    }

    /// Bytes held for the client.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.backlog.pending().len(), self.backlog.allocated())
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Lengths here are at most a payload or a window.
fn truncate(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
