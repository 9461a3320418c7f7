//! The guest's end of vsock connections (virtio 1.2, 5.10) as parts of a script: packets with any
//! content, in the order in which the script sends and receives them.

use super::driver::{Descriptor, Part, Rings, VERSION_1, WRITE, Window, route_interrupt};
use sandboxvm_bare_guest::{Image, Script, Width};

/// CID of the guest.
pub const GUEST: u64 = 3;
/// CID of the host.
pub const HOST: u64 = 2;
/// Length of the header of a packet in bytes.
pub const HEADER: u32 = 44;
/// The queue from the host.
pub const RECEIVE: u32 = 0;
/// The queue to the host.
pub const TRANSMIT: u32 = 1;
/// The queue of events.
pub const EVENT: u32 = 2;

/// The `op` field.
pub mod operation {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RESET: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const READ_WRITE: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the specification's names")]
pub struct Packet {
    pub source_cid: u64,
    pub destination_cid: u64,
    pub source_port: u32,
    pub destination_port: u32,
    pub length: u32,
    pub socket_type: u16,
    pub operation: u16,
    pub flags: u32,
    pub buffer_size: u32,
    pub forwarded: u32,
}

impl Packet {
    /// Returns the header of a valid packet from the guest's `port`, with plenty of credit for the
    /// host.
    #[must_use]
    pub fn new(port: u32, operation: u16) -> Self {
        Self {
            source_cid: GUEST,
            destination_cid: HOST,
            source_port: port,
            destination_port: 0,
            length: 0,
            socket_type: 1,
            operation,
            flags: 0,
            buffer_size: 1 << 20,
            forwarded: 0,
        }
    }

    /// Returns the encoding in memory.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER as usize);
        bytes.extend(self.source_cid.to_le_bytes());
        bytes.extend(self.destination_cid.to_le_bytes());
        for field in [self.source_port, self.destination_port, self.length] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(self.socket_type.to_le_bytes());
        bytes.extend(self.operation.to_le_bytes());
        for field in [self.flags, self.buffer_size, self.forwarded] {
            bytes.extend(field.to_le_bytes());
        }
        bytes
    }
}

/// A connection. The address in guest memory at which the host's port is stored identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    cell: u64,
    port: u32,
}

impl Connection {
    /// Returns the address in guest memory of the host's port, which is known after the request was
    /// received.
    #[must_use]
    pub fn cell(self) -> u64 {
        self.cell
    }
}

/// Number of buffers on the receive queue, and of descriptors on the transmit queue. There are so
/// few that the tests soon use each again.
const RECEIVE_SIZE: u16 = 32;
const TRANSMIT_SIZE: u16 = 4;
const EVENT_SIZE: u16 = 4;
/// Size of each receive buffer, and the distance of the buffers.
const BUFFER: u32 = HEADER + 4096;
const BUFFER_STRIDE: u64 = 0x2000;

/// The state of the driver at the present end of the script.
#[derive(Debug)]
pub struct SocketDriver {
    window: Window,
    receive: Rings,
    transmit: Rings,
    event: Rings,
    buffers: u64,
    /// Next free address for packets and for ports of hosts.
    free: u64,
    received: u16,
    transmitted: u16,
    halting: bool,
}

impl SocketDriver {
    /// Sets up the device in `window`, with memory from `base` on: 2 MiB and the packets that are
    /// sent. `interrupt` is the line of the device if the guest should halt while it waits.
    pub fn begin(image: &mut Image, window: Window, base: u64, interrupt: Option<u32>) -> Self {
        let [receive, transmit, event] = [(0, RECEIVE_SIZE), (1, TRANSMIT_SIZE), (2, EVENT_SIZE)]
            .map(|(index, size)| Rings::at(base + index * Rings::BYTES, size.into()));
        let driver = Self {
            window,
            receive,
            transmit,
            event,
            buffers: base + 0x1_0000,
            free: base + 0x10_0000,
            received: 0,
            transmitted: 0,
            halting: interrupt.is_some(),
        };
        for index in 0..RECEIVE_SIZE {
            let address = driver.buffer(index);
            receive.put(image, index, Descriptor { address, length: BUFFER, flags: WRITE, next: 0 });
        }
        receive.put_heads(image, &(0..RECEIVE_SIZE).collect::<Vec<_>>());
        event.put_chain(image, 0, &[Part::Writable(base + 0xf000, 8)]);
        event.put_heads(image, &[0]);
        transmit.put_heads(image, &(0..TRANSMIT_SIZE).collect::<Vec<_>>());
        driver.bring_up(&mut image.script);
        if let Some(line) = interrupt {
            route_interrupt(&mut image.script, line);
        }
        driver
    }

    /// Sets the device up after a reset and gives it all receive buffers.
    fn bring_up(&self, script: &mut Script) {
        self.window.negotiate(script, VERSION_1);
        for (queue, rings) in [(RECEIVE, &self.receive), (TRANSMIT, &self.transmit), (EVENT, &self.event)] {
            script.set(rings.available, 0).set(rings.used, 0);
            self.window.set_up_queue(script, queue, rings);
        }
        self.receive.publish(script, RECEIVE_SIZE);
        self.event.publish(script, 1);
        self.window.go_live(script);
        self.window.expect_live(script);
    }

    /// Sets the device up again, after it was reset.
    pub fn again(&mut self, script: &mut Script) {
        (self.received, self.transmitted) = (0, 0);
        self.bring_up(script);
    }

    fn buffer(&self, index: u16) -> u64 {
        self.buffers + u64::from(index % RECEIVE_SIZE) * BUFFER_STRIDE
    }

    /// Reserves memory for the script.
    pub fn allocate(&mut self, bytes: u64) -> u64 {
        let address = self.free;
        self.free += bytes.next_multiple_of(64);
        address
    }

    /// Waits for a packet, and gives up unless it has this operation. Returns the address of the
    /// packet, which is valid until 31 more packets have arrived.
    pub fn take(&mut self, script: &mut Script, operation: u16) -> u64 {
        let at = self.take_any(script);
        script.expect(Width::Half, at + 30, operation.into());
        at
    }

    /// As [`SocketDriver::take`], for any operation.
    pub fn take_any(&mut self, script: &mut Script) -> u64 {
        let at = self.buffer(self.received);
        self.received = self.received.wrapping_add(1);
        script.wait_for_index(self.receive.used, self.received, self.halting);
        // Gives the buffer back to the device. When it is used again, the script has read it.
        self.receive.publish(script, RECEIVE_SIZE.wrapping_add(self.received));
        self.window.notify(script, RECEIVE);
        at
    }

    /// Receives the host's request for `port` and accepts it, with `credit` bytes for the host to
    /// send.
    pub fn accept(&mut self, image: &mut Image, port: u32, credit: u32) -> Connection {
        let connection = self.take_request(image, port);
        self.send(image, connection, Packet { buffer_size: credit, ..Packet::new(port, operation::RESPONSE) }, b"");
        connection
    }

    /// Receives the host's request for `port`, and does not respond.
    pub fn take_request(&mut self, image: &mut Image, port: u32) -> Connection {
        let cell = self.allocate(4);
        let at = self.take(&mut image.script, operation::REQUEST);
        image.script.expect(Width::Word, at + 20, port.into());
        image.script.push(sandboxvm_bare_guest::Instruction::Copy { width: Width::Word, to: cell, from: at + 16 });
        Connection { cell, port }
    }

    /// Sends a packet on a connection. Its ports are those of the connection, and all other fields
    /// are as given.
    pub fn send(&mut self, image: &mut Image, connection: Connection, packet: Packet, payload: &[u8]) {
        let at = self.put(image, Packet { source_port: connection.port, ..packet }, payload);
        let to = at + 20;
        image.script.push(sandboxvm_bare_guest::Instruction::Copy { width: Width::Word, to, from: connection.cell });
        self.transmit(&mut image.script, at, HEADER + u32::try_from(payload.len()).expect("a small payload"));
    }

    /// Sends data on a connection in a valid packet.
    pub fn write(&mut self, image: &mut Image, connection: Connection, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a small payload");
        self.send(image, connection, Packet { length, ..Packet::new(0, operation::READ_WRITE) }, payload);
    }

    /// Sends a packet exactly as given.
    pub fn send_raw(&mut self, image: &mut Image, packet: Packet, payload: &[u8]) {
        let at = self.put(image, packet, payload);
        self.transmit(&mut image.script, at, HEADER + u32::try_from(payload.len()).expect("a small payload"));
    }

    fn put(&mut self, image: &mut Image, packet: Packet, payload: &[u8]) -> u64 {
        let bytes = [packet.encode(), payload.to_vec()].concat();
        let at = self.allocate(bytes.len() as u64);
        image.put(at, &bytes);
        at
    }

    /// Passes `length` bytes at `address` to the device as one packet, and waits until the device
    /// has returned them.
    pub fn transmit(&mut self, script: &mut Script, address: u64, length: u32) {
        let index = self.transmitted % TRANSMIT_SIZE;
        let descriptor = Descriptor { address, length, flags: 0, next: 0 }.encode();
        let (first, second) = descriptor.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let at = self.transmit.descriptors + 16 * u64::from(index);
        script.write(Width::Double, at, word(first)).write(Width::Double, at + 8, word(second));
        self.transmitted = self.transmitted.wrapping_add(1);
        self.transmit.publish(script, self.transmitted);
        self.window.notify(script, TRANSMIT);
        self.transmit.wait_used(script, self.transmitted);
    }

    /// Returns the window of the device.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }
}
