//! A guest: smoltcp on the frame socket, with an Ethernet card, the addresses of every guest, and blocking calls. The
//! benchmark attaches the same guest to other programs, whose sockets frame differently.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use sandboxvm_egress::stack::addresses::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, GUEST_V4, GUEST_V6, MTU};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::{tcp, udp},
    time::Instant as SmolInstant,
    wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint},
};
use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// Bytes of the header before each frame.
pub const HEADER: usize = 12;

/// Longest wait of a blocking call.
const PATIENCE: Duration = Duration::from_secs(20);

/// The form of frames on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// One packet is a `virtio_net_hdr_v1` and one frame. The checksum of TCP is neither written nor checked.
    Card,
    /// One packet is one frame.
    Packet,
    /// A stream, in which four bytes with its length precede each frame.
    Length,
}

impl Framing {
    /// Bytes before each frame.
    fn header(self) -> usize {
        match self {
            Self::Card => HEADER,
            Self::Packet => 0,
            Self::Length => 4,
        }
    }

    /// Writes what precedes the frame in `packet`.
    fn fill(self, packet: &mut [u8]) {
        if self == Self::Length {
            let length = u32::try_from(packet.len() - 4).unwrap();
            packet[..4].copy_from_slice(&length.to_be_bytes());
        }
    }
}

pub struct Card {
    pub socket: OwnedFd,
    /// Frames that came, without their header.
    pub received: VecDeque<Vec<u8>>,
    framing: Framing,
    /// Packets for which the socket had no room, the first perhaps in part.
    unsent: VecDeque<Vec<u8>>,
    /// The beginning of a frame on a stream.
    partial: Vec<u8>,
    mtu: usize,
    loses: Option<Box<dyn FnMut() -> bool>>,
}

impl Card {
    /// Sends a frame with its header.
    pub fn send(&self, frame: &[u8]) {
        let packet = [&[0; HEADER][..], frame].concat();
        self.send_raw(&packet);
    }

    /// Sends a packet on the frame socket.
    pub fn send_raw(&self, packet: &[u8]) {
        send(&self.socket, packet, SendFlags::NOSIGNAL).expect("a frame");
    }

    /// Sends what waits, as far as the socket has room. Returns true if nothing waits any more.
    fn flush(&mut self) -> bool {
        while let Some(packet) = self.unsent.front_mut() {
            match send(&self.socket, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) if sent < packet.len() => drop(packet.drain(..sent)),
                Ok(_) => drop(self.unsent.pop_front()),
                Err(Errno::AGAIN) => return false,
                Err(error) => panic!("{error}"),
            }
        }
        true
    }

    fn read(&mut self) {
        self.flush();
        let mut buffer = vec![0; HEADER + 14 + 65_535];
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => panic!("the egress process closed the frame socket"),
                Ok((count, _)) if self.framing == Framing::Length => self.split(&buffer[..count]),
                Ok((count, _)) => {
                    if !self.loses.as_mut().is_some_and(|loses| loses()) {
                        self.received.push_back(buffer[self.framing.header()..count].to_vec());
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Takes the frames that are complete out of a stream.
    fn split(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(header) = self.partial.get(at..at + 4) {
            let length = u32::from_be_bytes(header.try_into().unwrap()) as usize;
            let Some(frame) = self.partial.get(at + 4..at + 4 + length) else { break };
            self.received.push_back(frame.to_vec());
            at += 4 + length;
        }
        self.partial.drain(..at);
    }

    /// Waits until a frame comes.
    pub fn wait(&self, time: Duration) {
        let timeout = Timespec::try_from(time).unwrap();
        let events = if self.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = [PollFd::new(&self.socket, events)];
        let _ = poll(&mut fds, Some(&timeout));
    }
}

pub struct Rx(Vec<u8>);
pub struct Tx<'c>(&'c mut Card);

impl Device for Card {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Rx(frame), Tx(self)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Tx<'_>> {
        self.flush().then_some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = if self.framing == Framing::Card { Checksum::None } else { Checksum::Tx };
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let framing = self.0.framing;
        let mut packet = vec![0; framing.header() + len];
        let result = f(&mut packet[framing.header()..]);
        framing.fill(&mut packet);
        self.0.unsent.push_back(packet);
        self.0.flush();
        result
    }
}

/// A connection of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp(SocketHandle);

/// A UDP socket of the guest.
#[derive(Debug, Clone, Copy)]
pub struct Udp(SocketHandle);

/// Why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    Reset,
    Silent,
}

pub struct Guest {
    pub card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    began: Instant,
    next_port: u16,
    buffer: usize,
}

impl Guest {
    pub fn new(socket: OwnedFd) -> Self {
        Self::attached(socket, Framing::Card, (GUEST_V4, 30), GATEWAY_V4)
    }

    /// Returns a guest with this address, whose link has this framing.
    pub fn attached(socket: OwnedFd, framing: Framing, address: (Ipv4Addr, u8), gateway: Ipv4Addr) -> Self {
        let (received, unsent, partial) = Default::default();
        let mut card = Card { socket, received, framing, unsent, partial, mtu: MTU, loses: None };
        let mut config = Config::new(HardwareAddress::Ethernet(GUEST_MAC));
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut card, SmolInstant::from_micros(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::from(IpAddr::V4(address.0)), address.1)).unwrap();
            addresses.push(IpCidr::new(IpAddress::from(IpAddr::V6(GUEST_V6)), 64)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(gateway).unwrap();
        interface.routes_mut().add_default_ipv6_route(GATEWAY_V6).unwrap();
        Self {
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            began: Instant::now(),
            next_port: 40_000,
            buffer: 256 * 1024,
        }
    }

    /// Uses buffers of this many bytes for connections.
    pub fn set_buffer(&mut self, bytes: usize) {
        self.buffer = bytes;
    }

    /// Loses every frame to the guest for which `loses` returns true.
    pub fn lose(&mut self, loses: impl FnMut() -> bool + 'static) {
        self.card.loses = Some(Box::new(loses));
    }

    pub fn poll(&mut self) {
        self.card.read();
        let now = SmolInstant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap());
        self.interface.poll(now, &mut self.card, &mut self.sockets);
    }

    /// Polls until `done` returns something.
    pub fn until<R>(
        &mut self,
        time: Duration,
        mut done: impl FnMut(&mut SocketSet<'static>) -> Option<R>,
    ) -> Option<R> {
        let until = Instant::now() + time;
        loop {
            self.poll();
            if let Some(result) = done(&mut self.sockets) {
                // What `done` wrote is sent.
                self.poll();
                return Some(result);
            }
            if Instant::now() >= until {
                return None;
            }
            self.card.wait(Duration::from_millis(5));
        }
    }

    /// Handles frames for a while.
    pub fn rest(&mut self) {
        self.until(Duration::from_millis(300), |_| None::<()>);
    }

    pub fn port(&mut self) -> u16 {
        self.next_port = if self.next_port == 60_000 { 40_000 } else { self.next_port + 1 };
        self.next_port
    }

    /// Begins a connection.
    pub fn begin(&mut self, to: SocketAddr) -> Tcp {
        let buffer = || tcp::SocketBuffer::new(vec![0; self.buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let port = self.port();
        socket.connect(self.interface.context(), IpEndpoint::from(to), port).unwrap();
        let tcp = Tcp(self.sockets.add(socket));
        self.poll();
        tcp
    }

    /// Connects.
    pub fn connect(&mut self, to: SocketAddr) -> Result<Tcp, Failed> {
        let tcp = self.begin(to);
        self.connected(tcp).map(|()| tcp)
    }

    pub fn connected(&mut self, tcp: Tcp) -> Result<(), Failed> {
        let state = self.until(PATIENCE, |sockets| {
            let state = sockets.get::<tcp::Socket<'_>>(tcp.0).state();
            (state != tcp::State::SynSent).then_some(state)
        });
        match state {
            Some(tcp::State::Closed) => Err(Failed::Reset),
            Some(_) => Ok(()),
            None => Err(Failed::Silent),
        }
    }

    pub fn send(&mut self, tcp: Tcp, mut bytes: &[u8]) -> Result<(), Failed> {
        while !bytes.is_empty() {
            let sent = self.until(PATIENCE, |sockets| {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(tcp.0);
                if !socket.may_send() {
                    return Some(Err(Failed::Reset));
                }
                socket.can_send().then(|| socket.send_slice(bytes).map_err(|_| Failed::Reset))
            });
            bytes = &bytes[sent.unwrap_or(Err(Failed::Silent))?..];
        }
        Ok(())
    }

    /// Reads at most `max` bytes. Returns none at the end.
    pub fn read(&mut self, tcp: Tcp, max: usize) -> Result<Vec<u8>, Failed> {
        self.read_within(tcp, max, PATIENCE)
    }

    pub fn read_within(&mut self, tcp: Tcp, max: usize, time: Duration) -> Result<Vec<u8>, Failed> {
        let read = self.until(time, |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(tcp.0);
            let mut buffer = vec![0; max];
            match socket.recv_slice(&mut buffer) {
                Ok(0) => None,
                Ok(count) => {
                    buffer.truncate(count);
                    Some(Ok(buffer))
                }
                Err(tcp::RecvError::Finished) => Some(Ok(Vec::new())),
                Err(tcp::RecvError::InvalidState) => Some(Err(Failed::Reset)),
            }
        });
        read.unwrap_or(Err(Failed::Silent))
    }

    pub fn read_exact(&mut self, tcp: Tcp, count: usize) -> Result<Vec<u8>, Failed> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let more = self.read(tcp, count - bytes.len())?;
            assert!(!more.is_empty(), "it ended after {} bytes", bytes.len());
            bytes.extend(more);
        }
        Ok(bytes)
    }

    pub fn read_to_end(&mut self, tcp: Tcp) -> Result<Vec<u8>, Failed> {
        let mut bytes = Vec::new();
        loop {
            let more = self.read(tcp, 1 << 20)?;
            if more.is_empty() {
                return Ok(bytes);
            }
            bytes.extend(more);
        }
    }

    pub fn close(&mut self, tcp: Tcp) {
        self.sockets.get_mut::<tcp::Socket<'_>>(tcp.0).close();
        self.poll();
    }

    pub fn abort(&mut self, tcp: Tcp) {
        self.sockets.get_mut::<tcp::Socket<'_>>(tcp.0).abort();
        self.poll();
    }

    /// Waits until both sides have closed a connection.
    pub fn closed(&mut self, tcp: Tcp) {
        let closed = self.until(PATIENCE, |sockets| {
            let state = sockets.get::<tcp::Socket<'_>>(tcp.0).state();
            matches!(state, tcp::State::Closed | tcp::State::TimeWait).then_some(())
        });
        assert!(closed.is_some(), "{:?}", self.state(tcp));
    }

    /// Waits until all that was sent is confirmed.
    pub fn drained(&mut self, tcp: Tcp) {
        let drained =
            self.until(PATIENCE, |sockets| (sockets.get::<tcp::Socket<'_>>(tcp.0).send_queue() == 0).then_some(()));
        assert!(drained.is_some());
    }

    /// Forgets a connection without a segment.
    pub fn forget(&mut self, tcp: Tcp) {
        self.sockets.remove(tcp.0);
    }

    pub fn state(&mut self, tcp: Tcp) -> tcp::State {
        self.poll();
        self.sockets.get::<tcp::Socket<'_>>(tcp.0).state()
    }

    pub fn udp(&mut self) -> Udp {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 256 * 1024]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(self.port()).unwrap();
        Udp(self.sockets.add(socket))
    }

    pub fn send_to(&mut self, udp: Udp, bytes: &[u8], to: SocketAddr) {
        let sent = self.until(PATIENCE, |sockets| {
            sockets.get_mut::<udp::Socket<'_>>(udp.0).send_slice(bytes, IpEndpoint::from(to)).ok()
        });
        assert!(sent.is_some());
    }

    pub fn receive_from(&mut self, udp: Udp, time: Duration) -> Option<(Vec<u8>, SocketAddr)> {
        self.until(time, |sockets| {
            let socket = sockets.get_mut::<udp::Socket<'_>>(udp.0);
            let (bytes, from) = socket.recv().ok()?;
            Some((bytes.to_vec(), SocketAddr::new(from.endpoint.addr.into(), from.endpoint.port)))
        })
    }

    /// Reads one frame past smoltcp.
    pub fn frame(&mut self, time: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + time;
        loop {
            self.card.read();
            if let Some(frame) = self.card.received.pop_front() {
                return Some(frame);
            }
            if Instant::now() >= until {
                return None;
            }
            self.card.wait(Duration::from_millis(5));
        }
    }
}

/// An Ethernet frame from the guest to the gateway.
pub fn ethernet(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    ethernet_to(GATEWAY_MAC, kind, payload)
}

/// An Ethernet frame from the guest.
pub fn ethernet_to(to: EthernetAddress, kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &GUEST_MAC.0, &kind, payload].concat()
}
