//! Bytes in both directions: whole, in order, at the other side's pace, with few packets.

use super::super::{
    device::{RECEIVE, TRANSMIT},
    limits::Limits,
    packet::{CreditFields, Header, Operation, Shutdown},
};
use super::{
    guest::{Guest, Piece, Setup},
    peer::{PORT, Peer, pattern, read_now, write_now},
};
use crate::devices::virtio::device::VirtioDevice;
use sandboxvm_protocol::machine::OutputRate;
use std::{
    io::Write,
    net::Shutdown as Half,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};
use vm_memory::{Bytes, GuestAddress};

const MIB: usize = 1 << 20;

/// Moves `total` bytes each way at the same time. Every round the guest reads `guest_reads` bytes and the client `client_reads`.
fn move_both_ways(setup: Setup, total: usize, guest_reads: usize, client_reads: usize) -> Peer {
    let mut peer = Peer::new(setup);
    let (mut client, port) = peer.connect();
    let (to_guest, to_client) = (pattern(total), pattern(total + 1)[1..].to_vec());
    let (mut at_guest, mut at_client) = (Vec::new(), Vec::new());
    let (mut client_wrote, mut guest_wrote) = (0, 0);
    while at_guest.len() < total || at_client.len() < total {
        let before = (at_guest.len(), at_client.len(), client_wrote, guest_wrote);
        client_wrote += write_now(&mut client, &to_guest[client_wrote..total.min(client_wrote + MIB)]);
        peer.run();
        at_guest.extend(peer.read(port, guest_reads));
        guest_wrote += peer.write(port, &to_client[guest_wrote..]);
        peer.run();
        at_client.extend(read_now(&mut client, client_reads).expect("the stream has not ended"));
        peer.run();
        let footprint = peer.guest.footprint();
        assert!(footprint.waiting <= Limits::window(0) as usize, "{footprint:?}");
        assert!(footprint.allocated <= Limits::window(0) as usize, "{footprint:?}");
        assert_ne!(before, (at_guest.len(), at_client.len(), client_wrote, guest_wrote), "stuck");
    }
    assert!(at_guest == to_guest, "bytes for the guest were changed");
    assert!(at_client == to_client, "bytes for the client were changed");
    client.shutdown(Half::Write).unwrap();
    peer.run();
    assert_eq!(peer.guest.footprint().allocated, 0, "the backlog is freed once it is empty");
    assert!(peer.socket(port).shut.sends_no_more);
    peer
}

#[test]
fn eight_mebibytes_each_way() {
    for event_idx in [true, false] {
        move_both_ways(Setup { event_idx, ..Setup::default() }, 8 * MIB, MIB, MIB);
    }
}

/// [`Peer::run`] fails on a device that asks for its turn without end while it waits.
#[test]
fn a_guest_that_may_send_less_is_held_to_it_and_nothing_is_lost() {
    const TOTAL: usize = 2 * MIB;
    let rate = OutputRate::try_from(MIB as u64).unwrap();
    for event_idx in [true, false] {
        let mut peer = Peer::new(Setup { event_idx, output_rate: Some(rate), ..Setup::default() });
        let (mut client, port) = peer.connect();
        let (sent, begun) = (pattern(TOTAL), Instant::now());
        let (mut written, mut received) = (0, Vec::new());
        peer.run_until_with("two seconds' worth of bytes", |peer| {
            written += peer.write(port, &sent[written..]);
            received.extend(read_now(&mut client, MIB).expect("the stream has not ended"));
            received.len() == TOTAL
        });
        // The first quarter of a second's was let through immediately.
        assert!(begun.elapsed() >= Duration::from_millis(1600), "{:?}", begun.elapsed());
        assert!(received == sent, "bytes for the client were changed");
    }
}

#[test]
fn a_guest_that_reads_slowly() {
    move_both_ways(Setup::default(), 2 * MIB, 3000, MIB);
}

#[test]
fn a_client_that_reads_slowly() {
    move_both_ways(Setup::default(), 2 * MIB, MIB, 3001);
}

#[test]
fn receive_buffers_of_64_kib_and_a_header() {
    let peer = move_both_ways(Setup { rx_size: 65536 + 44, ..Setup::default() }, 8 * MIB, MIB, MIB);
    let data = peer.count(Operation::ReadWrite);
    assert!(data <= 3 * 8 * MIB / 65536, "{data} packets for 8 MiB");
}

#[test]
fn receive_buffers_of_one_byte_and_a_header() {
    move_both_ways(Setup { rx_size: 45, ..Setup::default() }, 20_000, MIB, MIB);
}

#[test]
fn a_receive_buffer_in_scattered_pieces() {
    let mut guest = Guest::powered(Setup::default());
    guest.activate();
    // Cuts inside the header and inside the payload.
    for cuts in [vec![1, 43, 1, 99], vec![44, 100], vec![20, 30, 94], vec![144]] {
        let mut address = 0x40_0000;
        let pieces: Vec<_> = cuts
            .iter()
            .map(|&length| {
                address += 0x1000;
                Piece { address, length, writable: true }
            })
            .collect();
        let mut client = guest.client();
        client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
        assert!(guest.post_rx(100));
        guest.kick();
        guest.serve();
        let request = guest.packets_without_repost()[0].0;
        let credit = CreditFields { buffer_size: 1 << 20, forwarded: 0 };
        let response = Header { credit, ..Header::new(request.destination, request.source, Operation::Response) };
        guest.send(&response, &[]);
        assert!(guest.rings[RECEIVE].add(&guest.memory, &pieces));
        guest.kick();
        let sent = pattern(150);
        client.write_all(&sent).unwrap();
        guest.serve();
        let packets = guest.packets();
        assert_eq!(packets.len(), 1, "{cuts:?}");
        assert_eq!(packets[0].0.length, 100);
        assert_eq!(packets[0].1, sent[..100]);
        drop(client);
        guest.device.reset();
        guest.forget_queues();
        guest.activate();
    }
}

#[test]
fn without_credit_the_client_is_left_alone_and_the_loop_sleeps() {
    let mut peer = Peer::new(Setup::default());
    peer.buffer_size = 10_000;
    let (mut client, port) = peer.connect();
    let sent = pattern(50_000);
    client.write_all(&sent).unwrap();
    peer.run();
    assert_eq!(peer.socket(port).unread.len(), 10_000, "exactly the credit");
    assert!(!peer.guest.host_wants(Duration::from_millis(20)), "the readable client keeps the event loop awake");
    client.write_all(b"!").unwrap();
    peer.run();
    assert_eq!(peer.socket(port).unread.len(), 10_000);
    let mut received = Vec::new();
    while received.len() < 50_001 {
        let bytes = peer.read(port, 1_000_000);
        assert!(!bytes.is_empty(), "stuck at {}", received.len());
        received.extend(bytes);
        peer.run();
    }
    assert_eq!(received[..50_000], sent);
    drop(client);
    peer.run();
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
}

#[test]
fn a_client_that_hangs_up_without_credit_does_not_keep_the_loop_awake() {
    let mut peer = Peer::new(Setup::default());
    peer.buffer_size = 1000;
    let (mut client, port) = peer.connect();
    client.write_all(&pattern(3000)).unwrap();
    drop(client);
    peer.run();
    assert!(!peer.guest.host_wants(Duration::from_millis(20)));
    let mut received = Vec::new();
    while received.len() < 3000 {
        received.extend(peer.read(port, 1000));
        peer.run();
    }
    assert_eq!(received, pattern(3000));
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn without_receive_buffers_everything_waits_and_the_loop_sleeps() {
    for event_idx in [true, false] {
        let mut guest = Guest::powered(Setup { event_idx, ..Setup::default() });
        guest.activate();
        let mut peer = Peer::of(guest);
        let mut client = peer.guest.client();
        client.write_all(format!("CONNECT {PORT}\nabc").as_bytes()).unwrap();
        peer.run();
        assert!(!peer.guest.host_wants(Duration::from_millis(20)));
        // One at a time: each is noticed.
        for _ in 0..2 {
            assert!(peer.log.len() < 2);
            peer.guest.post_rx(4096);
            peer.guest.kick();
            for (header, _) in peer.guest.packets_without_repost() {
                peer.log.push(header);
                if Operation::from_wire(header.operation) == Some(Operation::Request) {
                    let credit = CreditFields { buffer_size: 4096, forwarded: 0 };
                    let response =
                        Header { credit, ..Header::new(header.destination, header.source, Operation::Response) };
                    peer.guest.send(&response, &[]);
                    peer.guest.serve();
                }
            }
        }
        assert_eq!(peer.log.len(), 2);
        assert_eq!(peer.log[1].length, 3);
    }
}

#[test]
fn no_kick_is_asked_for_while_receive_buffers_last() {
    let mut peer = Peer::new(Setup::default());
    let (mut client, port) = peer.connect();
    let before = peer.guest.kicks[RECEIVE];
    for _ in 0..500 {
        client.write_all(b"message").unwrap();
        peer.run();
        peer.read(port, 100);
    }
    peer.run();
    assert_eq!(peer.guest.kicks[RECEIVE], before, "the guest leaves for the host for nothing");
}

#[test]
fn messages_to_the_guest_cost_one_interrupt_each_and_none_for_what_it_sent() {
    let mut peer = Peer::new(Setup::default());
    let (mut client, port) = peer.connect();
    let before = peer.guest.interrupts;
    for _ in 0..100 {
        client.write_all(b"message").unwrap();
        peer.run();
        peer.read(port, 100);
        peer.run();
    }
    // 100 data packets in; 100 credit updates out, returned in batches.
    let interrupts = peer.guest.interrupts - before;
    assert!((100..=110).contains(&interrupts), "{interrupts} interrupts");
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let mut peer = Peer::new(Setup { event_idx: false, ..Setup::default() });
    let (mut client, _) = peer.connect();
    let flags = GuestAddress(peer.guest.rings[RECEIVE].avail());
    peer.guest.memory.write_obj(1u16, flags).unwrap();
    client.write_all(b"quietly").unwrap();
    peer.guest.serve();
    assert!(peer.guest.packets().is_empty(), "no interrupt");
    peer.guest.memory.write_obj(0u16, flags).unwrap();
    client.write_all(b"loudly").unwrap();
    peer.guest.serve();
    assert_eq!(peer.guest.packets().len(), 2);
}

#[test]
fn an_idle_guest_gets_its_transmit_buffers_back() {
    let mut peer = Peer::new(Setup {
        limits: Limits { completion_delay: Duration::from_millis(300), ..Limits::DEFAULT },
        ..Setup::default()
    });
    let (_client, _) = peer.connect();
    assert_eq!(peer.guest.rings[TRANSMIT].outstanding(), 1);
    let interrupts = peer.guest.interrupts;
    assert!(peer.guest.host_wants(Duration::from_secs(5)));
    peer.run();
    peer.guest.packets();
    peer.guest.reclaim();
    assert_eq!(peer.guest.rings[TRANSMIT].outstanding(), 0);
    assert_eq!(peer.guest.interrupts, interrupts + 1, "one interrupt for all of them");
    assert_eq!(peer.guest.footprint().deadlines, 0);
}

#[test]
fn credit_updates_to_the_guest_are_few() {
    let mut peer = Peer::new(Setup::default());
    let (mut client, port) = peer.connect();
    let bytes = pattern(4 * MIB);
    let (mut written, mut read) = (0, Vec::new());
    while read.len() < bytes.len() {
        written += peer.write(port, &bytes[written..]);
        peer.run();
        read.extend(read_now(&mut client, MIB).unwrap());
        peer.run();
    }
    assert!(read == bytes);
    let updates = peer.count(Operation::CreditUpdate);
    // A window is 256 KiB, and an update comes when at most a quarter is left.
    assert!((16..=24).contains(&updates), "{updates} updates for 4 MiB");
}

#[test]
fn a_guest_out_of_credit_goes_on_when_the_client_reads() {
    let mut peer = Peer::new(Setup::default());
    let (mut client, port) = peer.connect();
    let bytes = pattern(MIB);
    let mut written = 0;
    loop {
        let now = peer.write(port, &bytes[written..]);
        written += now;
        peer.run();
        if now == 0 {
            break;
        }
    }
    assert!(written < MIB, "the client does not read, so this must end");
    assert!(peer.socket(port).credit() == 0);
    assert!(peer.guest.footprint().waiting <= 256 * 1024);
    let mut read = Vec::new();
    while read.len() < MIB {
        read.extend(read_now(&mut client, 10_000).unwrap());
        peer.run();
        written += peer.write(port, &bytes[written..]);
        peer.run();
    }
    assert!(read == bytes);
}

/// The client makes room, and before the event loop comes round to what waits for it, the guest sends more.
#[test]
fn what_waits_goes_before_what_comes() {
    let mut peer = Peer::new(Setup::default());
    let (mut client, port) = peer.connect();
    let bytes = pattern(MIB);
    let mut written = 0;
    while peer.guest.footprint().waiting == 0 {
        written += peer.write(port, &bytes[written..written + 10_000]);
    }
    let mut read = Vec::new();
    for _ in 0..5 {
        while let Some(now) = read_now(&mut client, MIB).filter(|now| !now.is_empty()) {
            read.extend(now);
        }
        written += peer.write(port, &bytes[written..written + 10_000]);
    }
    while read.len() < written {
        peer.run();
        read.extend(read_now(&mut client, MIB).unwrap());
    }
    assert!(read == bytes[..written]);
}

#[test]
fn a_credit_request_is_answered() {
    let mut peer = Peer::new(Setup::default());
    let (_client, port) = peer.connect();
    let request = peer.socket(port).packet(Operation::CreditRequest);
    peer.guest.send(&request, &[]);
    peer.run();
    assert_eq!(peer.count(Operation::CreditUpdate), 1);
    assert_eq!(peer.log.last().unwrap().credit, CreditFields { buffer_size: 256 * 1024, forwarded: 0 });
}

/// With few receive buffers, a connection with endless data and one with a little take turns.
#[test]
fn connections_take_turns() {
    let mut guest = Guest::powered(Setup::default());
    guest.activate();
    let mut peer = Peer::of(guest);
    for _ in 0..4 {
        peer.guest.post_rx(4096);
    }
    peer.guest.kick();
    let mut clients: Vec<(UnixStream, u32)> = (0..4).map(|_| peer.connect()).collect();
    peer.log.clear();
    for (client, _) in &mut clients {
        assert!(write_now(client, &pattern(100_000)) > 60_000);
    }
    peer.guest.serve();
    let mut turns = Vec::new();
    while turns.len() < 40 {
        let packets = peer.guest.packets();
        turns.extend(packets.iter().map(|(header, _)| header.source.port));
        peer.guest.kick();
        peer.guest.serve();
    }
    for window in turns[..40].chunks(4) {
        let mut window = window.to_vec();
        window.sort_unstable();
        window.dedup();
        assert_eq!(window.len(), 4, "{turns:?}");
    }
}

/// However much is to do, a call comes back after a bounded part of it and the event loop comes again for the rest.
#[test]
fn one_wake_up_does_a_bounded_amount_of_work() {
    let mut peer = Peer::new(Setup { rx_size: 45, ..Setup::default() });
    let (mut client, _) = peer.connect();
    client.write_all(&pattern(1000)).unwrap();
    let used = peer.guest.queues[RECEIVE].state().next_used;
    peer.guest.call(|device, context| device.host_ready(Some(context))).unwrap();
    let filled = peer.guest.queues[RECEIVE].state().next_used.wrapping_sub(used);
    assert!((1..=64).contains(&filled), "{filled}");
}

/// Many connections cannot make the device hold a large window each.
#[test]
fn windows_shrink_with_the_number_of_connections() {
    let mut peer = Peer::new(Setup::default());
    let mut clients = Vec::new();
    for _ in 0..70 {
        clients.push(peer.connect());
    }
    let mut windows: Vec<u32> = peer
        .log
        .iter()
        .filter(|header| Operation::from_wire(header.operation) == Some(Operation::Request))
        .map(|header| header.credit.buffer_size)
        .collect();
    assert_eq!(windows.len(), 70);
    windows.dedup();
    assert_eq!(windows, [256 * 1024, 64 * 1024]);
}
