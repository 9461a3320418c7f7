//! Random doings of guest and clients: whatever they do, every call returns, nothing panics, and what the device holds
//! stays bounded.

use super::super::{
    device::{EVENT, RECEIVE, TRANSMIT},
    limits::Limits,
    packet::{Address, CreditFields, HOST_CID, Header, Operation},
};
use super::{
    guest::{Guest, Piece, Setup},
    peer::{CID, PORT},
};
use crate::devices::virtio::device::VirtioDevice;
use proptest::prelude::*;
use std::{
    io::{Read, Write},
    net::Shutdown as Half,
    os::unix::net::UnixStream,
    time::Duration,
};

const LIMITS: Limits = Limits { connections: 6, handshakes: 3, replies: 8, ..Limits::DEFAULT };

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Dial(String),
    /// Of the n-th client.
    ClientWrites(usize, usize),
    ClientReads(usize, usize),
    ClientShuts(usize, bool),
    ClientLeaves(usize),
    /// A packet with plausible addresses and any fields.
    Packet {
        host_port: u32,
        guest_port: u32,
        operation: u16,
        kind: u16,
        flags: u32,
        length: u32,
        payload: usize,
        credit: CreditFields,
    },
    /// A packet of any bytes.
    Bytes(Vec<u8>),
    PostReceive(u32),
    Receive,
    Serve,
    PostEvent,
    Restore,
    Notify(usize),
}

fn operation() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 0u16..9, 1 => any::<u16>()]
}

fn credit() -> impl Strategy<Value = CreditFields> {
    let buffer = prop_oneof![4 => Just(256 * 1024u32), 1 => Just(0), 1 => any::<u32>(), 1 => 0u32..5000];
    let forwarded = prop_oneof![6 => Just(0u32), 1 => 0u32..5000, 1 => any::<u32>()];
    (buffer, forwarded).prop_map(|(buffer_size, forwarded)| CreditFields { buffer_size, forwarded })
}

fn step() -> impl Strategy<Value = Step> {
    let packet = (
        prop_oneof![9 => 0u32..8, 1 => any::<u32>()],
        prop_oneof![9 => Just(PORT), 1 => any::<u32>()],
        operation(),
        prop_oneof![9 => Just(1u16), 1 => any::<u16>()],
        prop_oneof![4 => 0u32..4, 1 => any::<u32>()],
        prop_oneof![4 => 0u32..3000, 1 => any::<u32>()],
        0usize..3000,
        credit(),
    )
        .prop_map(|(port, guest_port, operation, kind, flags, length, payload, credit)| Step::Packet {
            host_port: (1u32 << 30).wrapping_add(port),
            guest_port,
            operation,
            kind,
            flags,
            length: if operation == 5 { length.min(u32::try_from(payload).unwrap()) } else { length },
            payload,
            credit,
        });
    let line =
        prop_oneof![8 => Just(format!("CONNECT {PORT}\n")), 1 => "[A-Z0-9 \n]{0,40}", 1 => Just("CONNECT 1".into())];
    prop_oneof![
        3 => line.prop_map(Step::Dial),
        3 => (0usize..8, 1usize..100_000).prop_map(|(client, count)| Step::ClientWrites(client, count)),
        3 => (0usize..8, 1usize..100_000).prop_map(|(client, count)| Step::ClientReads(client, count)),
        1 => (0usize..8, any::<bool>()).prop_map(|(client, write)| Step::ClientShuts(client, write)),
        1 => (0usize..8).prop_map(Step::ClientLeaves),
        12 => packet,
        1 => proptest::collection::vec(any::<u8>(), 1..200).prop_map(Step::Bytes),
        3 => (45u32..8000).prop_map(Step::PostReceive),
        4 => Just(Step::Receive),
        6 => Just(Step::Serve),
        1 => Just(Step::PostEvent),
        1 => Just(Step::Restore),
        1 => (0usize..3).prop_map(Step::Notify),
    ]
}

struct World {
    guest: Guest,
    clients: Vec<UnixStream>,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Dial(line) if self.clients.len() < 12 => {
                let mut client = self.guest.client();
                client.write_all(line.as_bytes()).unwrap();
                self.clients.push(client);
            }
            Step::Dial(_) => {}
            Step::ClientWrites(at, count) => {
                if let Some(client) = self.clients.get_mut(at) {
                    let _ = client.write(&vec![0x55; count]);
                }
            }
            Step::ClientReads(at, count) => {
                if let Some(client) = self.clients.get_mut(at) {
                    let _ = client.read(&mut vec![0; count]);
                }
            }
            Step::ClientShuts(at, write) => {
                if let Some(client) = self.clients.get(at) {
                    let _ = client.shutdown(if write { Half::Write } else { Half::Read });
                }
            }
            Step::ClientLeaves(at) => {
                if at < self.clients.len() {
                    self.clients.remove(at);
                }
            }
            Step::Packet { host_port, guest_port, operation, kind, flags, length, payload, credit } => {
                let source = Address { cid: CID, port: guest_port };
                let destination = Address { cid: HOST_CID, port: host_port };
                let header = Header {
                    operation,
                    socket_type: kind,
                    flags,
                    length,
                    credit,
                    ..Header::new(source, destination, Operation::Request)
                };
                self.guest.send(&header, &vec![0xaa; payload]);
            }
            Step::Bytes(bytes) => {
                let mut pieces = self.guest.place(&bytes, &[]);
                pieces.pop();
                self.guest.send_pieces(&pieces);
                self.guest.kick();
            }
            Step::PostReceive(length) => {
                self.guest.post_rx(length);
                self.guest.kick();
            }
            Step::Receive => {
                self.guest.packets_without_repost();
            }
            Step::Serve => self.guest.serve(),
            Step::PostEvent => {
                if !self.guest.events().is_empty() {
                    self.guest.post_event();
                    self.guest.kick();
                }
            }
            Step::Restore => {
                let state = self.guest.device.save_state();
                self.guest.device.restore_state(&state).unwrap();
                self.step(Step::Notify(TRANSMIT));
            }
            Step::Notify(queue) => {
                assert!([RECEIVE, TRANSMIT, EVENT].contains(&queue));
                self.guest.call(|device, context| device.queue_notified(queue, context)).unwrap();
            }
        }
    }

    fn check(&self) {
        let footprint = self.guest.footprint();
        assert!(footprint.connections + footprint.handshakes <= LIMITS.connections, "{footprint:?}");
        assert!(footprint.handshakes <= LIMITS.handshakes, "{footprint:?}");
        assert!(footprint.replies <= LIMITS.replies, "{footprint:?}");
        assert!(footprint.runnable <= footprint.connections, "{footprint:?}");
        assert!(footprint.deadlines <= LIMITS.connections + 2, "{footprint:?}");
        assert!(footprint.waiting <= LIMITS.connections * 256 * 1024, "{footprint:?}");
        assert!(footprint.allocated <= LIMITS.connections * 256 * 1024, "{footprint:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_device_stays_bounded(
        event_idx in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut guest = Guest::powered(Setup { limits: LIMITS, event_idx, ..Setup::default() });
        guest.activate();
        guest.fill();
        guest.kick();
        let mut world = World { guest, clients: Vec::new() };
        for step in steps {
            world.step(step);
            world.check();
        }
        // At rest, with receive buffers and without clients, it has nothing left to do.
        world.clients.clear();
        world.guest.serve();
        assert!(!world.guest.host_wants(Duration::ZERO));
    }

    /// Random bytes where the rings and descriptors are: an error or nothing, in bounded time.
    #[test]
    fn random_rings_end_in_an_error_at_worst(
        noise in proptest::collection::vec((0usize..3, 0u64..0x5000, any::<u64>()), 1..60),
        indices in proptest::array::uniform3(0u16..80),
        lengths in proptest::collection::vec(any::<u32>(), 8),
    ) {
        let mut guest = Guest::booted(Setup::default());
        let mut client = guest.client();
        client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
        for (at, length) in lengths.iter().enumerate() {
            let piece = Piece { address: u64::from(length.rotate_left(9)), length: length >> (length % 32), writable: at % 2 == 0 };
            let index = u16::try_from(at).unwrap();
            guest.rings[at % 3].write_descriptor(&guest.memory, index % 4, piece, u16::from(length % 3 == 0), index);
        }
        for (queue, offset, value) in noise {
            let at = vm_memory::GuestAddress(guest.rings[queue].descriptors() + offset);
            vm_memory::Bytes::write_obj(&guest.memory, value, at).unwrap();
        }
        for (queue, index) in indices.into_iter().enumerate() {
            let at = vm_memory::GuestAddress(guest.rings[queue].avail() + 2);
            vm_memory::Bytes::write_obj(&guest.memory, index, at).unwrap();
        }
        for queue in [TRANSMIT, RECEIVE, EVENT] {
            let _ = guest.call(|device, context| device.queue_notified(queue, context));
        }
        let state = guest.device.save_state();
        guest.device.restore_state(&state).unwrap();
        let _ = guest.call(|device, context| device.queue_notified(EVENT, context));
        for _ in 0..100 {
            if !guest.host_wants(Duration::ZERO) || guest.call(|device, context| device.host_ready(Some(context))).is_err() {
                break;
            }
        }
        prop_assert!(guest.footprint().connections <= 1);
    }
}
