//! The upper half of the played guest: sockets with the credit rules of Linux 6.1's net/vmw_vsock. It checks on the way
//! that the device never exceeds the credit it was given.

use super::super::packet::{Address, CreditFields, HOST_CID, Header, MAX_PAYLOAD, Operation, Shutdown};
use super::guest::{Guest, Setup};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

pub(super) const CID: u64 = 3;
pub(super) const PORT: u32 = 1024;
/// Linux's default buffer_size.
const BUFFER: u32 = 256 * 1024;

/// One of the guest's sockets.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) guest_port: u32,
    pub(super) host_port: u32,
    /// Bytes received and not yet read by the guest's program.
    pub(super) unread: Vec<u8>,
    pub(super) buffer_size: u32,
    forwarded: u32,
    announced: u32,
    sent: u32,
    host: CreditFields,
    /// What the device said it does no more.
    pub(super) shut: Shutdown,
    /// A RST came.
    pub(super) reset: bool,
}

impl Socket {
    pub(super) fn credit(&self) -> u32 {
        self.host.buffer_size.saturating_sub(self.sent.wrapping_sub(self.host.forwarded))
    }

    pub(super) fn packet(&self, operation: Operation) -> Header {
        let guest = Address { cid: CID, port: self.guest_port };
        let host = Address { cid: HOST_CID, port: self.host_port };
        let credit = CreditFields { buffer_size: self.buffer_size, forwarded: self.forwarded };
        Header { credit, ..Header::new(guest, host, operation) }
    }
}

/// The guest and its sockets, by host port.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) guest: Guest,
    pub(super) listening: BTreeSet<u32>,
    pub(super) sockets: BTreeMap<u32, Socket>,
    /// Accept connections; otherwise requests are ignored.
    pub(super) answers: bool,
    pub(super) buffer_size: u32,
    /// Everything that came.
    pub(super) log: Vec<Header>,
}

impl Peer {
    /// A guest that listens on [`PORT`].
    pub(super) fn new(setup: Setup) -> Self {
        Self::of(Guest::booted(setup))
    }

    pub(super) fn of(guest: Guest) -> Self {
        let listening = BTreeSet::from([PORT]);
        Self { guest, listening, sockets: BTreeMap::new(), answers: true, buffer_size: BUFFER, log: Vec::new() }
    }

    /// Runs event loop and guest until neither has anything to do.
    pub(super) fn run(&mut self) {
        for _ in 0..10_000 {
            self.guest.serve();
            let packets = self.guest.packets();
            let kicked = self.guest.kick();
            if packets.is_empty() && !kicked && !self.guest.host_wants(Duration::ZERO) {
                return;
            }
            for (header, payload) in packets {
                self.receive(&header, &payload);
            }
        }
        panic!("guest and device never come to rest");
    }

    /// Runs until `done`, for things that take time.
    pub(super) fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        self.run_until_with(what, |peer| done(peer));
    }

    /// As [`Peer::run_until`], with something to do in each round.
    pub(super) fn run_until_with(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            self.run();
            if done(self) {
                return;
            }
            assert!(Instant::now() < end, "timed out: {what}");
            self.guest.host_wants(Duration::from_millis(5));
        }
    }

    fn receive(&mut self, header: &Header, payload: &[u8]) {
        self.log.push(*header);
        assert_eq!(header.destination.cid, CID);
        let host_port = header.source.port;
        let operation = Operation::from_wire(header.operation).expect("the device sends known operations only");
        let Some(socket) = self.sockets.get_mut(&host_port) else {
            if operation == Operation::Request && self.answers {
                self.accept(header);
            } else if operation != Operation::Reset && operation != Operation::Request {
                self.guest.send(&header.refusal(), &[]);
            }
            return;
        };
        assert_eq!(header.destination.port, socket.guest_port);
        if operation != Operation::Reset {
            socket.host = header.credit;
        }
        match operation {
            Operation::ReadWrite => {
                assert!(!socket.shut.sends_no_more, "data after the end of the stream");
                assert!(!payload.is_empty(), "an empty data packet");
                socket.unread.extend(payload);
                assert!(socket.unread.len() <= socket.buffer_size as usize, "the device exceeds its credit");
            }
            Operation::Shutdown => {
                let shut = Shutdown::from_flags(header.flags);
                assert!(shut.sends_no_more >= socket.shut.sends_no_more, "a shutdown is never taken back");
                assert!(shut.receives_no_more >= socket.shut.receives_no_more, "a shutdown is never taken back");
                assert_ne!(shut, socket.shut, "a shutdown that says nothing new");
                socket.shut = shut;
                if shut == Shutdown::BOTH {
                    let reset = socket.packet(Operation::Reset);
                    self.guest.send(&reset, &[]);
                }
            }
            Operation::Reset => socket.reset = true,
            Operation::CreditUpdate => {}
            Operation::CreditRequest | Operation::Request | Operation::Response => panic!("unexpected {operation:?}"),
        }
    }

    fn accept(&mut self, request: &Header) {
        let socket = Socket {
            guest_port: request.destination.port,
            host_port: request.source.port,
            unread: Vec::new(),
            buffer_size: self.buffer_size,
            forwarded: 0,
            announced: 0,
            sent: 0,
            host: request.credit,
            shut: Shutdown::default(),
            reset: false,
        };
        if self.listening.contains(&socket.guest_port) {
            self.guest.send(&socket.packet(Operation::Response), &[]);
            self.sockets.insert(socket.host_port, socket);
        } else {
            self.guest.send(&socket.packet(Operation::Reset), &[]);
        }
    }

    /// The guest's program reads up to `count` bytes.
    pub(super) fn read(&mut self, host_port: u32, count: usize) -> Vec<u8> {
        let socket = self.sockets.get_mut(&host_port).unwrap();
        let rest = socket.unread.split_off(count.min(socket.unread.len()));
        let bytes = std::mem::replace(&mut socket.unread, rest);
        socket.forwarded = socket.forwarded.wrapping_add(u32::try_from(bytes.len()).unwrap());
        let news = socket.forwarded.wrapping_sub(socket.announced);
        // virtio_transport_stream_do_dequeue
        if news > 0 && !socket.reset && (socket.buffer_size - news < MAX_PAYLOAD || socket.unread.is_empty()) {
            socket.announced = socket.forwarded;
            let update = socket.packet(Operation::CreditUpdate);
            self.guest.send(&update, &[]);
        }
        bytes
    }

    /// The guest's program writes; returns how much there was credit for.
    pub(super) fn write(&mut self, host_port: u32, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            let socket = self.sockets.get_mut(&host_port).unwrap();
            let count = (bytes.len() - written).min(socket.credit().min(MAX_PAYLOAD) as usize);
            if count == 0 || socket.reset || socket.shut.receives_no_more {
                break;
            }
            let length = u32::try_from(count).unwrap();
            socket.sent = socket.sent.wrapping_add(length);
            socket.announced = socket.forwarded;
            let header = Header { length, ..socket.packet(Operation::ReadWrite) };
            self.guest.send(&header, &bytes[written..written + count]);
            written += count;
        }
        written
    }

    pub(super) fn shut(&mut self, host_port: u32, shutdown: Shutdown) {
        let header = Header { flags: shutdown.to_flags(), ..self.sockets[&host_port].packet(Operation::Shutdown) };
        self.guest.send(&header, &[]);
    }

    /// A client and the host port its connection got; both sides are through with the handshake.
    pub(super) fn connect(&mut self) -> (UnixStream, u32) {
        let mut client = self.guest.client();
        client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
        self.run();
        let line = read_line(&mut client);
        let port = line.strip_prefix("OK ").unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        (client, port)
    }

    pub(super) fn socket(&self, host_port: u32) -> &Socket {
        &self.sockets[&host_port]
    }

    /// Packets that came, of one operation.
    pub(super) fn count(&self, operation: Operation) -> usize {
        self.log.iter().filter(|header| Operation::from_wire(header.operation) == Some(operation)).count()
    }
}

/// What the client reads up to the end of the line, which it must have already.
pub(super) fn read_line(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match client.read(&mut byte) {
            Ok(1) if byte[0] == b'\n' => return String::from_utf8(line).unwrap(),
            Ok(1) => line.push(byte[0]),
            other => panic!("{other:?} after {line:?}"),
        }
    }
}

/// What the client can read now; `None` at the end of the stream.
pub(super) fn read_now(client: &mut UnixStream, most: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; most];
    match client.read(&mut bytes) {
        Ok(0) => None,
        Ok(count) => {
            bytes.truncate(count);
            Some(bytes)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Vec::new()),
        Err(error) => panic!("{error}"),
    }
}

/// As much as the client can write now.
pub(super) fn write_now(client: &mut UnixStream, bytes: &[u8]) -> usize {
    match client.write(bytes) {
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

/// Bytes that never repeat within reach of a test, so that a lost, doubled or moved one shows.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
