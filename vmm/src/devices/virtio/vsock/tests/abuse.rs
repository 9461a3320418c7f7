//! A guest that breaks the rules: it loses a connection or the device, and costs the host nothing.

use super::super::{
    device::{RECEIVE, TRANSMIT},
    limits::Limits,
    packet::{Address, CreditFields, HOST_CID, Header, Operation, Shutdown},
};
use super::{
    guest::{Guest, MEMORY, Piece, Setup},
    peer::{CID, PORT, Peer, pattern, read_now, write_now},
};
use crate::devices::virtio::device::{DeviceError, VirtioDevice};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};
use vm_memory::{Bytes, GuestAddress};

fn peer() -> Peer {
    Peer::new(Setup::default())
}

/// The packet costs the guest this connection, and nothing else.
fn assert_resets(what: &str, forge: impl Fn(&Header) -> (Header, Vec<u8>)) {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    let (mut other, other_port) = peer.connect();
    let (header, payload) = forge(&peer.socket(port).packet(Operation::ReadWrite));
    peer.guest.send(&header, &payload);
    peer.run();
    assert!(peer.socket(port).reset, "{what}: the guest receives a reset");
    assert!(matches!(client.read(&mut [0]), Ok(0)), "{what}: the client is closed");
    assert_eq!(peer.guest.footprint().connections, 1, "{what}");
    other.write_all(b"still here").unwrap();
    peer.run();
    assert_eq!(peer.read(other_port, 100), b"still here", "{what}");
}

#[test]
fn lies_in_a_packet_cost_its_connection() {
    assert_resets("more length than payload", |header| (Header { length: 5, ..*header }, vec![0; 4]));
    assert_resets("length without payload", |header| (Header { length: 1, ..*header }, vec![]));
    assert_resets("length beyond any buffer", |header| (Header { length: u32::MAX, ..*header }, vec![0; 100]));
    assert_resets("payload beyond the cap", |header| (Header { length: 65537, ..*header }, vec![0; 65537]));
    assert_resets("unknown operation", |header| (Header { operation: 8, ..*header }, vec![]));
    assert_resets("operation 0", |header| (Header { operation: 0, ..*header }, vec![]));
    assert_resets("operation 65535", |header| (Header { operation: u16::MAX, ..*header }, vec![]));
    assert_resets("a second response", |header| (Header { operation: 2, ..*header }, vec![]));
    assert_resets("a request", |header| (Header { operation: 1, ..*header }, vec![]));
    let consumed = |forwarded| {
        move |header: &Header| {
            (Header { operation: 6, credit: CreditFields { forwarded, ..header.credit }, ..*header }, vec![])
        }
    };
    assert_resets("consumed what was never sent", consumed(1));
    assert_resets("consumed far more than was ever sent", consumed(i32::MAX.unsigned_abs()));
}

#[test]
fn data_after_the_end_of_the_stream_costs_the_connection() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    peer.shut(port, Shutdown { sends_no_more: true, receives_no_more: false });
    peer.write(port, b"more");
    peer.run();
    assert!(peer.socket(port).reset);
    assert_eq!(read_now(&mut client, 10), None);
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    let bytes = pattern(60_000);
    let mut sent = 0;
    while !peer.socket(port).reset {
        // The client does not read, so that its socket and the window fill up.
        let header = Header { length: 60_000, ..peer.socket(port).packet(Operation::ReadWrite) };
        peer.guest.send(&header, &bytes);
        peer.run();
        sent += 60_000;
        let footprint = peer.guest.footprint();
        assert!(footprint.waiting <= 256 * 1024 && footprint.allocated <= 256 * 1024, "{footprint:?}");
        assert!(sent < 4_000_000);
    }
    assert!(sent > 256 * 1024);
    assert_eq!(peer.guest.footprint().connections, 0);
    assert_eq!(peer.guest.footprint().allocated, 0);
    // What had reached the client's socket is still whole.
    let first = read_now(&mut client, 60_000).unwrap();
    assert_eq!(first, bytes[..first.len()]);
}

#[test]
fn a_buffer_that_grows_shrinks_and_vanishes_is_believed_only_for_the_future() {
    let mut peer = peer();
    peer.buffer_size = 0;
    let (mut client, port) = peer.connect();
    assert_eq!(write_now(&mut client, &pattern(100_000)), 100_000);
    peer.run();
    assert!(peer.socket(port).unread.is_empty());
    assert!(!peer.guest.host_wants(Duration::from_millis(10)));
    let mut tell = |buffer_size| {
        peer.sockets.get_mut(&port).unwrap().buffer_size = buffer_size;
        let update = peer.socket(port).packet(Operation::CreditUpdate);
        peer.guest.send(&update, &[]);
        peer.run();
        peer.socket(port).unread.len()
    };
    assert_eq!(tell(1), 1);
    assert_eq!(tell(3000), 3000);
    assert_eq!(tell(u32::MAX), 100_000, "all there is, not all there could be");
    // Shrinking below what is in flight is not an error and gives nothing.
    peer.sockets.get_mut(&port).unwrap().buffer_size = 10;
    let update = peer.socket(port).packet(Operation::CreditUpdate);
    peer.guest.send(&update, &[]);
    client.write_all(b"!").unwrap();
    peer.run();
    assert_eq!(peer.socket(port).unread.len(), 100_000);
    assert!(!peer.socket(port).reset);
}

#[test]
fn packets_for_nobody_are_refused() {
    let mut peer = peer();
    let (_client, port) = peer.connect();
    let good = peer.socket(port).packet(Operation::CreditUpdate);
    let before = peer.log.len();
    let to = |cid, port| Address { cid, port };
    let strays = [
        ("an unknown port", Header { destination: to(HOST_CID, port + 1), ..good }),
        ("another guest port", Header { source: to(CID, PORT + 1), ..good }),
        ("another host", Header { destination: to(1, port), ..good }),
        ("another machine", Header { destination: to(4, port), ..good }),
        ("a CID of more than 32 bits", Header { destination: to(1 << 32 | HOST_CID, port), ..good }),
        ("a seqpacket socket", Header { socket_type: 2, ..good }),
        ("an unknown type of socket", Header { socket_type: 0xffff, ..good }),
    ];
    for (what, stray) in strays {
        peer.guest.send(&stray, &[]);
        peer.guest.serve();
        let replies: Vec<_> = peer.guest.packets().into_iter().map(|(header, _)| header).collect();
        assert_eq!(replies, [stray.refusal()], "{what}");
        assert_eq!(replies[0].socket_type, stray.socket_type, "{what}");
    }
    assert_eq!(peer.log.len(), before);
    assert_eq!(peer.guest.footprint().connections, 1, "none of them touched the connection");
}

#[test]
fn packets_from_another_address_and_stray_resets_are_dropped() {
    let mut peer = peer();
    let (_client, port) = peer.connect();
    let good = peer.socket(port).packet(Operation::Reset);
    for cid in [0, 1, HOST_CID, 4, 1 << 32 | CID, u64::MAX] {
        peer.guest.send(&Header { source: Address { cid, ..good.source }, ..good }, &[]);
    }
    for _ in 0..1000 {
        peer.guest.send(&Header { destination: Address { port: 1, ..good.destination }, ..good }, &[]);
    }
    peer.run();
    assert_eq!(peer.log.len(), 1, "the request only");
    assert_eq!(peer.guest.footprint().connections, 1);
}

#[test]
fn a_guess_at_a_port_that_was_not_offered_yet_helps_nobody() {
    let mut guest = Guest::powered(Setup::default());
    guest.activate();
    let mut peer = Peer::of(guest);
    let mut client = peer.guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    peer.run();
    // No receive buffer was posted, so the guest cannot know of the request; it guesses the port.
    let response =
        Header::new(Address { cid: CID, port: PORT }, Address { cid: HOST_CID, port: 1 << 30 }, Operation::Response);
    peer.guest.send(&response, &[]);
    peer.run();
    assert!(matches!(client.read(&mut [0]), Ok(0)));
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn a_flood_of_requests_is_answered_as_far_as_there_is_room() {
    let mut guest = Guest::powered(Setup { limits: Limits { replies: 32, ..Limits::DEFAULT }, ..Setup::default() });
    guest.activate();
    let request =
        |port| Header::new(Address { cid: CID, port }, Address { cid: HOST_CID, port: 80 }, Operation::Request);
    for port in 0..5000 {
        guest.send(&request(port), &[]);
        guest.serve();
        assert!(guest.footprint().replies <= 32);
    }
    assert_eq!(guest.footprint().replies, 32);
    assert_eq!(guest.footprint().connections, 0);
    guest.fill();
    guest.kick();
    guest.serve();
    let replies: Vec<_> = guest.packets().into_iter().map(|(header, _)| header).collect();
    assert_eq!(replies, (0..32).map(|port| request(port).refusal()).collect::<Vec<_>>());
}

#[test]
fn a_full_transmit_queue_is_worked_off_in_bounded_turns() {
    let mut peer = peer();
    let (_client, port) = peer.connect();
    let header = peer.socket(port).packet(Operation::CreditUpdate);
    for _ in 0..3 {
        // As many as the queue has descriptors, less those the device still holds, at the same time.
        peer.guest.reclaim();
        let free = usize::from(peer.guest.rings[TRANSMIT].size) - peer.guest.rings[TRANSMIT].outstanding();
        for _ in 0..free {
            let mut pieces = peer.guest.place(&header.encode(), &[]);
            pieces.pop();
            peer.guest.send_pieces(&pieces);
        }
        peer.run();
        assert!(peer.guest.rings[TRANSMIT].outstanding() < 64);
    }
    assert_eq!(peer.guest.footprint().connections, 1);
}

#[test]
fn packets_too_short_for_a_header_are_dropped() {
    let mut peer = peer();
    let (_client, port) = peer.connect();
    let header = peer.socket(port).packet(Operation::Reset).encode();
    for length in [1, 10, 43] {
        let mut pieces = peer.guest.place(&header[..length], &[]);
        pieces.pop();
        peer.guest.send_pieces(&pieces);
        peer.run();
    }
    assert_eq!(peer.guest.footprint().connections, 1);
    // A byte more and it is one.
    let mut pieces = peer.guest.place(&header, &[]);
    pieces.pop();
    peer.guest.send_pieces(&pieces);
    peer.run();
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn a_packet_in_single_bytes_is_a_packet() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    let header = Header { length: 6, ..peer.socket(port).packet(Operation::ReadWrite) };
    let whole = peer.guest.place(&[header.encode().as_slice(), b"ABCDEF tail"].concat(), &[]);
    let pieces: Vec<_> =
        (0..55).map(|at| Piece { address: whole[0].address + at, length: 1, writable: false }).collect();
    peer.guest.send_pieces(&pieces);
    peer.run();
    assert_eq!(read_now(&mut client, 100).unwrap(), b"ABCDEF", "what lies beyond the length is not sent");
}

#[test]
fn empty_data_packets_are_nothing() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    for _ in 0..1000 {
        let header = peer.socket(port).packet(Operation::ReadWrite);
        peer.guest.send(&header, &[]);
    }
    peer.run();
    assert_eq!(read_now(&mut client, 10).unwrap(), b"", "no end of file");
    assert_eq!(peer.guest.footprint().connections, 1);
}

#[test]
fn a_storm_of_credit_requests_gets_few_answers() {
    let mut peer = peer();
    let (_client, port) = peer.connect();
    let request = peer.socket(port).packet(Operation::CreditRequest);
    for _ in 0..10 {
        for _ in 0..16 {
            let mut pieces = peer.guest.place(&request.encode(), &[]);
            pieces.pop();
            peer.guest.send_pieces(&pieces);
        }
        peer.run();
    }
    assert!((1..=20).contains(&peer.count(Operation::CreditUpdate)), "one per turn, not one per request");
}

/// Breaks a queue and returns the error the device stops with.
fn break_queue(prepare: impl FnOnce(&mut Peer, u32)) -> String {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    // Without other receive buffers, so that the forged one comes next.
    peer.guest.device.reset();
    peer.guest.forget_queues();
    peer.guest.activate();
    drop(client);
    client = peer.guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    peer.run();
    prepare(&mut peer, port);
    let result = peer.guest.try_kick().and_then(|_| peer.guest.try_serve());
    let Err(error @ DeviceError::Queue { .. }) = result else { panic!("{result:?}") };
    assert!(matches!(client.read(&mut [0]), Ok(0)), "its clients do not hang");
    assert_eq!(peer.guest.footprint().connections, 0);
    error.to_string()
}

#[test]
fn broken_chains_stop_the_device() {
    let at = |address, length, writable| Piece { address, length, writable };
    let bad_receive = |pieces: Vec<Piece>| {
        break_queue(move |peer, _| assert!(peer.guest.rings[RECEIVE].add(&peer.guest.memory, &pieces)))
    };
    let bad_transmit = |pieces: Vec<Piece>| {
        break_queue(move |peer, _| assert!(peer.guest.rings[TRANSMIT].add(&peer.guest.memory, &pieces)))
    };
    let memory = MEMORY as u64;
    for error in [
        bad_receive(vec![at(0x40_0000, 4096, false)]),
        bad_receive(vec![at(0x40_0000, 44, false), at(0x40_1000, 4096, true)]),
        bad_transmit(vec![at(0x40_0000, 44, true)]),
        bad_transmit(vec![at(0x40_0000, 44, false), at(0x40_1000, 100, true)]),
    ] {
        assert!(error.contains("wrong way"), "{error}");
    }
    for length in [1, 43, 44] {
        let error = bad_receive(vec![at(0x40_0000, length, true)]);
        assert!(error.contains("cannot hold a packet header and a byte"), "{error}");
    }
    for error in [
        bad_receive(vec![at(memory, 4096, true)]),
        bad_receive(vec![at(memory - 1, 4096, true)]),
        bad_receive(vec![at(u64::MAX - 10, 4096, true)]),
        bad_transmit(vec![at(memory - 43, 44, false)]),
        bad_transmit(vec![at(0x40_0000, 44, false), at(0x40_0000, u32::MAX, false)]),
    ] {
        assert!(error.contains("are not memory"), "{error}");
    }
    bad_receive(vec![at(0x40_0000, 0, true)]);
}

#[test]
fn broken_rings_stop_the_device() {
    for queue in [RECEIVE, TRANSMIT] {
        let writable = queue == RECEIVE;
        let piece = Piece { address: 0x40_0000, length: 4096, writable };
        break_queue(|peer, _| {
            let ring = &mut peer.guest.rings[queue];
            ring.write_descriptor(&peer.guest.memory, 3, piece, 1, 3);
            ring.publish(&peer.guest.memory, 3);
        });
        break_queue(|peer, _| peer.guest.rings[queue].publish(&peer.guest.memory, 64));
        break_queue(|peer, _| {
            let ring = &mut peer.guest.rings[queue];
            ring.write_descriptor(&peer.guest.memory, 3, piece, 1, 64);
            ring.publish(&peer.guest.memory, 3);
        });
        break_queue(|peer, _| {
            let ring = &mut peer.guest.rings[queue];
            ring.publish(&peer.guest.memory, 0);
            let jump = peer.guest.memory.read_obj::<u16>(GuestAddress(ring.avail() + 2)).unwrap().wrapping_add(65);
            peer.guest.memory.write_obj(jump, GuestAddress(ring.avail() + 2)).unwrap();
        });
    }
}

/// The same buffer made available again and again, while the device holds it.
#[test]
fn a_chain_used_twice_does_no_harm() {
    let mut peer = peer();
    let (_client, port) = peer.connect();
    let header = peer.socket(port).packet(Operation::CreditUpdate);
    let pieces = peer.guest.place(&header.encode(), &[]);
    peer.guest.rings[TRANSMIT].write_descriptor(&peer.guest.memory, 7, pieces[0], 0, 0);
    for _ in 0..1000 {
        peer.guest.rings[TRANSMIT].publish(&peer.guest.memory, 7);
        peer.guest.try_kick().unwrap();
        peer.guest.serve();
    }
    assert_eq!(peer.guest.footprint().connections, 1);
}

#[test]
fn queues_that_are_not_ready_are_left_alone() {
    for queue in [RECEIVE, TRANSMIT] {
        let mut peer = peer();
        let (mut client, port) = peer.connect();
        peer.guest.queues[queue] = virtio_queue::QueueT::new(64).unwrap();
        client.write_all(b"x").unwrap();
        peer.guest.serve();
        peer.guest.call(|device, context| device.queue_notified(TRANSMIT, context)).unwrap();
        peer.guest.call(|device, context| device.queue_notified(RECEIVE, context)).unwrap();
        assert!(!peer.guest.host_wants(Duration::from_millis(10)));
        assert!(peer.socket(port).unread.is_empty() || queue == TRANSMIT);
    }
}

/// Clients that come and go while the guest posts no receive buffers must leave nothing behind.
#[test]
fn clients_that_come_and_go_leave_nothing() {
    let mut peer = peer();
    for round in 0..300 {
        let (mut client, port) = peer.connect();
        client.write_all(b"data").unwrap();
        peer.write(port, b"data");
        if round % 2 == 0 {
            peer.shut(port, Shutdown::BOTH);
        }
        drop(client);
        peer.run();
        peer.sockets.remove(&port);
    }
    let footprint = peer.guest.footprint();
    assert_eq!((footprint.connections, footprint.runnable, footprint.replies), (0, 0, 0));
    assert!(footprint.deadlines <= 1, "{footprint:?}");
    assert!(open_files() < 200);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Descriptors that a client passes along are nobody's.
#[test]
fn descriptors_sent_by_a_client_are_not_kept() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut peer = peer();
    let (client, port) = peer.connect();
    let (mut mine, passed) = UnixStream::pair().unwrap();
    let fds = [std::os::fd::AsFd::as_fd(&passed)];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&client, &[std::io::IoSlice::new(b"look")], &mut ancillary, SendFlags::empty()).unwrap();
    drop(passed);
    peer.run();
    assert_eq!(peer.read(port, 10), b"look");
    assert!(matches!(mine.read(&mut [0]), Ok(0)), "the last copy was closed");
}
