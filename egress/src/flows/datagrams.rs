//! Flows of datagrams: UDP, and ICMP echo. Each has a socket of the dialer's, connected to its one peer.

use super::{
    account::{Account, Ended},
    decision::{Verdict, begun},
    shared::Shared,
};
use crate::{
    rates::Way,
    session::refused,
    stack::{
        addresses::MTU,
        packet::{Content, Inbound, Packet, packet_of},
        replies::{self, Unreachable},
    },
};
use rustix::net::{RecvFlags, recv};
use sandboxvm_protocol::egress::{DialFailure, FlowEnd, Transport};
use std::{cell::RefCell, io, os::fd::OwnedFd, rc::Rc, time::Duration};
use tokio::{io::Interest, net::UdpSocket};

/// How long a flow lives after its last datagram, once there was an answer.
const IDLE: Duration = Duration::from_secs(60);

/// The same before an answer.
const UNREPLIED: Duration = Duration::from_secs(30);

/// Maximum number of datagrams that wait until the socket is there.
const MAX_QUEUED: usize = 8;

/// Maximum number of bytes in them.
const MAX_QUEUED_BYTES: usize = 64 * 1024;

/// What a socket is waited for: datagrams, and errors such as a refusal by the peer.
const RECEIVING: Interest = Interest::READABLE.add(Interest::ERROR);

/// Maximum number of datagrams that a flow passes to the guest before others may.
const BURST: usize = 64;

/// A flow of datagrams.
#[derive(Debug)]
pub struct DatagramFlow {
    /// Its account.
    pub account: Account,
    state: RefCell<State>,
}

#[derive(Debug)]
enum State {
    /// The socket is awaited, and these packets of the guest with it.
    Dialling(Vec<Box<[u8]>>),
    Open(Rc<UdpSocket>),
}

impl DatagramFlow {
    /// Returns a flow that is not dialled yet.
    #[must_use]
    pub fn new(account: Account) -> Rc<Self> {
        Rc::new(Self { account, state: RefCell::new(State::Dialling(Vec::new())) })
    }

    /// Takes a packet of the guest. What the peer's network does not take is dropped, as there.
    pub fn receive(&self, shared: &Shared, packet: &Packet<'_>) {
        match &mut *self.state.borrow_mut() {
            State::Dialling(queued) => {
                let bytes: usize = queued.iter().map(|packet| packet.len()).sum();
                if queued.len() < MAX_QUEUED && bytes + packet.bytes.len() <= MAX_QUEUED_BYTES {
                    queued.push(packet.bytes.into());
                }
            }
            State::Open(socket) => self.forward(shared, socket, packet),
        }
    }

    fn forward(&self, shared: &Shared, socket: &UdpSocket, packet: &Packet<'_>) {
        if !self.account.may_pass(Way::Out) {
            return;
        }
        let data = packet.data();
        let sent = match packet.content {
            Content::Udp { .. } => socket.try_send(data),
            Content::Echo { sequence, .. } => socket.try_send(&echo_request(packet, sequence)),
            Content::Tcp { .. } => return,
        };
        match sent {
            Ok(_) => self.account.passed(Way::Out, data.len()),
            // Of an earlier datagram, as a refusal by the peer is.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                replies::unreachable(&mut shared.link.outlet.borrow_mut(), packet.bytes, unreachable(&error));
            }
            Err(_) => {}
        }
    }

    /// Carries the flow to its end. `first` is its first packet.
    pub async fn run(&self, shared: &Shared, first: &[u8]) -> Ended {
        tokio::select! {
            biased;
            end = self.account.ending() => Ended::from(end),
            ended = self.carry(shared, first) => ended,
        }
    }

    async fn carry(&self, shared: &Shared, first: &[u8]) -> Ended {
        let Inbound::Packet(packet) = packet_of(first) else { return FlowEnd::NotEstablished.into() };
        let dial = match begun(&self.account.session().borrow(), &self.account.key) {
            Verdict::Forward(dial, _) => dial,
            // Only TCP shows names.
            Verdict::Resolve | Verdict::Inspect(..) | Verdict::Refuse(_) => return FlowEnd::NotEstablished.into(),
        };
        let socket = match shared.dialing.dial(dial).await {
            Ok(fd) => UdpSocket::from_std(socket(fd)).map_err(|_| DialFailure::Busy),
            Err(failure) => Err(failure),
        };
        if let Ok(socket) = &socket {
            // Before the runtime knows that it is writable, nothing can be sent. An error is found by the first datagram.
            let _ = socket.writable().await;
        }
        let socket = match socket {
            Ok(socket) => socket,
            Err(failure) => {
                let why = match failure {
                    DialFailure::Refused => Unreachable::Port,
                    DialFailure::Unreachable | DialFailure::TimedOut => Unreachable::Host,
                    _ => Unreachable::Prohibited,
                };
                replies::unreachable(&mut shared.link.outlet.borrow_mut(), packet.bytes, why);
                let refused = failure.is_refusal().then(|| refused(failure.to_string()));
                return Ended { end: FlowEnd::NotEstablished, refused };
            }
        };
        let socket = Rc::new(socket);
        let before = self.state.replace(State::Open(Rc::clone(&socket)));
        if let State::Dialling(queued) = before {
            for packet in &queued {
                if let Inbound::Packet(packet) = packet_of(packet) {
                    self.forward(shared, &socket, &packet);
                }
            }
        }
        let idle = || if self.account.is_replied() { IDLE } else { UNREPLIED };
        tokio::select! {
            () = self.back(shared, &socket, packet.bytes) => FlowEnd::Closed.into(),
            () = self.account.idle(idle) => FlowEnd::Idle.into(),
        }
    }

    /// Passes what the peer sends to the guest. Never returns while the socket is good.
    async fn back(&self, shared: &Shared, socket: &UdpSocket, first: &[u8]) {
        loop {
            if socket.ready(RECEIVING).await.is_err() {
                return;
            }
            for _ in 0..BURST {
                let freed = shared.link.outlet.borrow().freed();
                let freed = freed.notified();
                let passed = self.pass(shared, socket, first);
                match passed {
                    Passed::Some => {}
                    Passed::None => break,
                    Passed::Full => freed.await,
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn pass(&self, shared: &Shared, socket: &UdpSocket, first: &[u8]) -> Passed {
        let mut outlet = shared.link.outlet.borrow_mut();
        if !outlet.is_free() {
            return Passed::Full;
        }
        let may_pass = self.account.may_pass(Way::In);
        let key = &self.account.key;
        let mut passed = Passed::None;
        let read = match key.transport {
            Transport::Icmp => {
                let mut reply = [0; MTU];
                let read = receive(socket, &mut reply);
                if let Ok(count) = read {
                    passed = Passed::Some;
                    // Only the kernel's own socket for echo requests is read here, and it has replies alone.
                    if let [0 | 129, 0, _, _, _, _, s0, s1, data @ ..] = &reply[..count]
                        && may_pass
                    {
                        let sequence = u16::from_be_bytes([*s0, *s1]);
                        replies::echo_reply(&mut outlet, key.address, key.from, sequence, data);
                        self.account.passed(Way::In, data.len());
                    }
                }
                read
            }
            Transport::Udp | Transport::Tcp => {
                let mut read = Ok(0);
                replies::datagram(&mut outlet, (key.address, key.port), key.from, |room| {
                    let size = room.len();
                    // One byte more than fits tells a datagram that does not.
                    read = receive(socket, room);
                    let count = *read.as_ref().ok()?;
                    passed = Passed::Some;
                    if !may_pass || count >= size {
                        return None;
                    }
                    self.account.passed(Way::In, count);
                    Some(count)
                });
                read
            }
        };
        match read {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                replies::unreachable(&mut outlet, first, unreachable(&error));
                Passed::Some
            }
            Ok(_) | Err(_) => passed,
        }
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    // tokio does nothing where an interest is in both.
    match socket.try_io(Interest::READABLE, || Ok(recv(socket, &mut *buffer, RecvFlags::DONTWAIT)?.0)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            socket.try_io(Interest::ERROR, || Ok(recv(socket, buffer, RecvFlags::DONTWAIT)?.0))
        }
        received => received,
    }
}

enum Passed {
    /// Something was read.
    Some,
    /// There is nothing.
    None,
    /// The link to the guest is full.
    Full,
}

fn echo_request(packet: &Packet<'_>, sequence: u16) -> Vec<u8> {
    let kind = if packet.destination.is_ipv4() { 8 } else { 128 };
    let [s0, s1] = sequence.to_be_bytes();
    // The kernel fills in its own identifier and the checksum.
    let mut request = vec![kind, 0, 0, 0, 0, 0, s0, s1];
    request.extend_from_slice(packet.data());
    request
}

fn unreachable(error: &io::Error) -> Unreachable {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Unreachable::Port,
        io::ErrorKind::PermissionDenied => Unreachable::Prohibited,
        _ => Unreachable::Host,
    }
}

/// A socket for echo requests is a socket of datagrams, as one of UDP is.
fn socket(fd: OwnedFd) -> std::net::UdpSocket {
    fd.into()
}
