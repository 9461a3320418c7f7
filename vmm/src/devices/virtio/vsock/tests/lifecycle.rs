//! How connections begin and end.

use super::super::{
    device::{EVENT, RECEIVE, TRANSMIT},
    limits::Limits,
    packet::{Address, HOST_CID, Header, Operation, Shutdown},
};
use super::{
    Footprint,
    guest::{Guest, Setup},
    in_child,
    peer::{CID, PORT, Peer, pattern, read_line, read_now, write_now},
};
use crate::devices::virtio::device::VirtioDevice;
use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown as Half,
    os::unix::net::UnixStream,
    time::Duration,
};

fn peer() -> Peer {
    Peer::new(Setup::default())
}

/// Only receiving, only sending, both.
const RECEIVES_NO_MORE: Shutdown = Shutdown { receives_no_more: true, sends_no_more: false };
const SENDS_NO_MORE: Shutdown = Shutdown { receives_no_more: false, sends_no_more: true };

fn quick() -> Setup {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(300),
        response_timeout: Duration::from_millis(300),
        close_timeout: Duration::from_millis(300),
        linger_timeout: Duration::from_millis(500),
        ..Limits::DEFAULT
    };
    Setup { limits, ..Setup::default() }
}

fn is_closed(client: &mut UnixStream) -> bool {
    match client.read(&mut [0]) {
        Ok(0) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_connects_and_both_sides_talk() {
    for event_idx in [true, false] {
        let mut peer = Peer::new(Setup { event_idx, ..Setup::default() });
        let (mut client, port) = peer.connect();
        client.write_all(b"ping").unwrap();
        peer.run();
        assert_eq!(peer.read(port, 100), b"ping");
        assert_eq!(peer.write(port, b"pong"), 4);
        peer.run();
        assert_eq!(read_now(&mut client, 100).unwrap(), b"pong");
        assert_eq!(peer.guest.footprint().connections, 1);
    }
}

#[test]
fn what_a_client_writes_right_behind_its_line_is_not_lost() {
    let mut peer = peer();
    let mut client = peer.guest.client();
    client.write_all(format!("CONNECT {PORT}\nhello").as_bytes()).unwrap();
    peer.run();
    let port = *peer.sockets.first_key_value().unwrap().0;
    assert_eq!(read_line(&mut client), format!("OK {port}"));
    assert_eq!(peer.read(port, 100), b"hello");
}

#[test]
fn a_line_may_come_in_pieces() {
    let mut peer = peer();
    let mut client = peer.guest.client();
    for piece in ["CON", "NECT 10", "24", "\nx"] {
        assert!(peer.sockets.is_empty());
        client.write_all(piece.as_bytes()).unwrap();
        peer.run();
    }
    let port = *peer.sockets.first_key_value().unwrap().0;
    assert_eq!(peer.read(port, 100), b"x");
}

#[test]
fn host_ports_are_fresh_for_every_connection() {
    let mut peer = peer();
    let ports: Vec<u32> = (0..20).map(|_| peer.connect().1).collect();
    assert!(ports.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ports:?}");
}

#[test]
fn a_refused_port_closes_the_client_at_once() {
    let mut peer = peer();
    let mut client = peer.guest.client();
    client.write_all(b"CONNECT 77\n").unwrap();
    peer.run();
    assert!(is_closed(&mut client));
    assert_eq!(peer.guest.footprint(), Footprint { deadlines: 1, ..Footprint::default() }, "held completions only");
}

#[test]
fn clients_that_come_before_the_driver_wait_for_it() {
    let mut guest = Guest::powered(Setup::default());
    let mut client = guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    assert!(!guest.host_wants(Duration::from_millis(20)), "a waiting client keeps the event loop awake");
    guest.device.host_ready(None).unwrap();
    assert_eq!(guest.footprint(), Footprint::default());
    guest.activate();
    let mut peer = Peer::of(guest);
    peer.run();
    assert!(!is_closed(&mut client), "no receive buffer yet");
    peer.guest.fill();
    peer.run();
    assert!(read_line(&mut client).starts_with("OK "));
}

#[test]
fn a_wrong_line_closes_the_client_and_nothing_else() {
    let mut peer = peer();
    let (mut other, _) = peer.connect();
    for line in ["HELLO\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT 1024 \n", "\n"] {
        let mut client = peer.guest.client();
        client.write_all(line.as_bytes()).unwrap();
        peer.run();
        assert!(is_closed(&mut client), "{line:?}");
    }
    let mut client = peer.guest.client();
    client.write_all(&[b'C'; 31]).unwrap();
    peer.run();
    assert!(!is_closed(&mut client), "31 bytes may still become a line");
    client.write_all(b"C").unwrap();
    peer.run();
    assert_eq!(client.read(&mut [0]).map_err(|error| error.kind()).unwrap_or(0), 0);
    assert!(!is_closed(&mut other));
    assert_eq!(peer.guest.footprint().handshakes, 0);
}

#[test]
fn a_client_that_leaves_before_its_line_is_forgotten() {
    let mut peer = peer();
    for _ in 0..200 {
        let mut client = peer.guest.client();
        client.write_all(b"CONN").unwrap();
        drop(client);
    }
    peer.run();
    assert_eq!(peer.guest.footprint(), Footprint::default());
    assert!(peer.log.is_empty());
}

#[test]
fn a_client_that_says_nothing_is_closed_in_time() {
    let mut peer = Peer::new(quick());
    let mut client = peer.guest.client();
    peer.run();
    assert_eq!(peer.guest.footprint().handshakes, 1);
    peer.run_until("handshake timeout", |peer| peer.guest.footprint().handshakes == 0);
    assert!(is_closed(&mut client));
    assert_eq!(peer.guest.footprint(), Footprint::default());
}

#[test]
fn half_done_handshakes_are_few_and_the_rest_wait_their_turn() {
    let mut peer = Peer::new(Setup {
        limits: Limits { handshakes: 4, handshake_timeout: Duration::from_millis(300), ..Limits::DEFAULT },
        ..Setup::default()
    });
    let silent: Vec<_> = (0..10).map(|_| peer.guest.client()).collect();
    let mut client = peer.guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    peer.run();
    assert_eq!(peer.guest.footprint().handshakes, 4);
    assert!(peer.sockets.is_empty());
    peer.run_until("the silent ones to be closed", |peer| peer.sockets.len() == 1);
    assert!(read_line(&mut client).starts_with("OK "));
    drop(silent);
}

#[test]
fn too_many_connections_are_closed_at_once() {
    let mut peer = Peer::new(Setup { limits: Limits { connections: 8, ..Limits::DEFAULT }, ..Setup::default() });
    let mut clients: Vec<_> = (0..8).map(|_| peer.connect()).collect();
    let mut late = peer.guest.client();
    peer.run();
    assert!(is_closed(&mut late));
    assert_eq!(peer.guest.footprint().connections, 8);
    drop(clients.pop());
    peer.run();
    assert_eq!(peer.guest.footprint().connections, 7);
    peer.connect();
    assert!(clients.iter_mut().all(|(client, _)| !is_closed(client)));
}

/// A client that cannot be accepted for want of descriptors keeps the listener readable; the device pauses.
#[test]
fn a_process_out_of_descriptors_does_not_spin() {
    let mut peer = Peer::new(Setup {
        limits: Limits { accept_pause: Duration::from_millis(30), ..Limits::DEFAULT },
        ..Setup::default()
    });
    let mut client = peer.guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    // In a child, because the limit is the whole process's.
    in_child(move || {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        // All of the first three are open, and poll(2) needs a limit of at least 1.
        let none = rustix::process::Rlimit { current: Some(3), ..limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, none).unwrap();
        peer.guest.call(|device, context| device.host_ready(Some(context))).unwrap();
        assert!(!peer.guest.host_wants(Duration::ZERO), "paused");
        assert_eq!(peer.guest.footprint().handshakes + peer.guest.footprint().connections, 0);
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        assert!(peer.guest.host_wants(Duration::from_secs(5)), "resumed");
        peer.run();
        assert_eq!(peer.sockets.len(), 1);
    });
}

#[test]
fn two_hundred_connections_at_once() {
    let mut peer = peer();
    let mut clients: Vec<_> = (0..200).map(|_| peer.connect()).collect();
    assert_eq!(peer.guest.footprint().connections, 200);
    for (number, (client, _)) in clients.iter_mut().enumerate() {
        client.write_all(format!("from {number}").as_bytes()).unwrap();
    }
    peer.run();
    for (number, (_, port)) in clients.iter().enumerate() {
        assert_eq!(peer.read(*port, 100), format!("from {number}").as_bytes());
        peer.write(*port, format!("to {number}").as_bytes());
    }
    peer.run();
    for (number, (client, _)) in clients.iter_mut().enumerate() {
        assert_eq!(read_now(client, 100).unwrap(), format!("to {number}").as_bytes());
    }
    drop(clients);
    peer.run();
    assert_eq!(peer.guest.footprint().connections, 0);
    assert!(peer.sockets.values().all(|socket| socket.shut == Shutdown::BOTH && !socket.reset));
}

#[test]
fn a_guest_that_does_not_answer_costs_the_client_a_timeout() {
    let mut peer = Peer::new(quick());
    peer.answers = false;
    let mut client = peer.guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    peer.run();
    assert_eq!(peer.count(Operation::Request), 1);
    assert!(!is_closed(&mut client));
    peer.run_until("response timeout", |peer| peer.guest.footprint().connections == 0);
    assert!(is_closed(&mut client));
    assert_eq!(peer.count(Operation::Reset), 1, "a late guest receives a reset, since no client waits any more");
}

#[test]
fn a_client_that_leaves_while_the_guest_decides_becomes_an_end_of_file() {
    let mut peer = peer();
    peer.answers = false;
    let mut client = peer.guest.client();
    client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    peer.run();
    drop(client);
    peer.run();
    let request = peer.log[0];
    let response = Header {
        credit: super::super::packet::CreditFields { buffer_size: 4096, forwarded: 0 },
        ..Header::new(request.destination, request.source, Operation::Response)
    };
    peer.guest.send(&response, &[]);
    peer.run();
    assert_eq!(Operation::from_wire(peer.log[1].operation), Some(Operation::Shutdown));
    assert_eq!(Shutdown::from_flags(peer.log[1].flags), Shutdown::BOTH);
}

#[test]
fn a_client_that_leaves_before_the_guest_heard_of_it_is_never_mentioned() {
    let mut guest = Guest::powered(Setup::default());
    guest.activate();
    let mut peer = Peer::of(guest);
    for _ in 0..300 {
        let mut client = peer.guest.client();
        client.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
        peer.run();
    }
    peer.run();
    assert_eq!(peer.guest.footprint(), Footprint::default());
    peer.guest.fill();
    peer.run();
    assert!(peer.log.is_empty());
}

#[test]
fn the_client_ends_its_stream_and_still_reads_the_answer() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Half::Write).unwrap();
    peer.run();
    assert_eq!(peer.read(port, 100), b"question");
    assert_eq!(peer.socket(port).shut, SENDS_NO_MORE);
    peer.write(port, b"answer");
    peer.run();
    assert_eq!(read_now(&mut client, 100).unwrap(), b"answer");
    assert!(!is_closed(&mut client));
    peer.shut(port, Shutdown::BOTH);
    peer.run();
    assert!(is_closed(&mut client));
    assert!(peer.socket(port).reset, "a proper end is answered with RST");
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn the_guest_ends_its_stream_and_still_reads() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    peer.write(port, b"all I have");
    peer.shut(port, SENDS_NO_MORE);
    peer.run();
    assert_eq!(read_now(&mut client, 100).unwrap(), b"all I have");
    assert!(is_closed(&mut client));
    client.write_all(b"more from me").unwrap();
    peer.run();
    assert_eq!(peer.read(port, 100), b"more from me");
    client.shutdown(Half::Write).unwrap();
    peer.run();
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH, "both streams have ended, so the connection has");
    assert_eq!(peer.count(Operation::Shutdown), 1);
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn the_client_ends_its_stream_first_and_the_guest_later() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    client.shutdown(Half::Write).unwrap();
    peer.run();
    peer.write(port, b"the end");
    peer.shut(port, SENDS_NO_MORE);
    peer.run();
    assert_eq!(read_now(&mut client, 100).unwrap(), b"the end");
    assert!(is_closed(&mut client));
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn the_guest_reads_no_more_and_still_sends() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    peer.shut(port, RECEIVES_NO_MORE);
    peer.run();
    assert_eq!(client.write(b"unwanted").unwrap_err().kind(), ErrorKind::BrokenPipe);
    peer.write(port, b"wanted");
    peer.run();
    assert_eq!(read_now(&mut client, 100).unwrap(), b"wanted");
    drop(client);
    peer.run();
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn the_client_reads_no_more_and_still_sends() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    client.shutdown(Half::Read).unwrap();
    peer.write(port, b"unwanted");
    peer.run();
    assert_eq!(peer.socket(port).shut, RECEIVES_NO_MORE);
    client.write_all(b"wanted").unwrap();
    peer.run();
    assert_eq!(peer.read(port, 100), b"wanted");
    drop(client);
    peer.run();
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
}

#[test]
fn a_client_that_closes_becomes_one_end_of_file_after_its_last_byte() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    client.write_all(b"last words").unwrap();
    drop(client);
    peer.run();
    assert_eq!(peer.socket(port).unread, b"last words");
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
    assert_eq!(peer.count(Operation::Shutdown), 1, "both halves in one packet");
    assert_eq!(peer.count(Operation::Reset), 0, "a reset is for a transport reset");
    assert_eq!(peer.guest.footprint().connections, 0, "the guest's RST ended it");
}

#[test]
fn a_client_killed_with_bytes_unread_becomes_an_end_of_file_too() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    peer.write(port, &pattern(1000));
    client.write_all(b"partial").unwrap();
    peer.run();
    drop(client);
    peer.run();
    assert_eq!(peer.socket(port).unread, b"partial");
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
    assert_eq!(peer.count(Operation::Reset), 0);
    // What the guest sent before it saw the end does not cause a reset either.
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn the_guest_may_go_on_sending_until_it_sees_that_the_client_left() {
    let mut peer = peer();
    let (client, port) = peer.connect();
    drop(client);
    peer.write(port, b"too late");
    peer.run();
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
    assert!(!peer.socket(port).reset);
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn both_sides_may_hang_up_at_once() {
    let mut peer = peer();
    let (client, port) = peer.connect();
    drop(client);
    // Our SHUTDOWN is on its way, and the guest sends its own before it sees it.
    peer.guest.serve();
    assert_eq!(peer.guest.footprint().connections, 1);
    peer.shut(port, Shutdown::BOTH);
    assert_eq!(peer.guest.footprint().connections, 0);
    peer.run();
    assert!(peer.socket(port).reset);
    assert_eq!(peer.count(Operation::Reset), 1);
}

#[test]
fn the_guest_closes_and_a_slow_client_still_gets_everything() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    let sent = pattern(300_000);
    // More than the client's socket takes, so that some waits in the device.
    assert!(peer.write(port, &sent) > 250_000);
    peer.shut(port, Shutdown::BOTH);
    peer.run();
    assert!(peer.socket(port).reset, "the guest is released immediately");
    assert!(peer.guest.footprint().waiting > 0, "else this tests nothing");
    // It has no connection any more, so whatever it sends now reaches no client.
    let mut stray = peer.socket(port).packet(Operation::CreditUpdate);
    stray.credit.forwarded = 1;
    let before = peer.log.len();
    peer.guest.send(&stray, &[]);
    peer.run();
    assert_eq!(peer.log[before..], [stray.refusal()]);
    let mut received = Vec::new();
    while let Some(bytes) = read_now(&mut client, 5000) {
        received.extend(bytes);
        peer.run();
    }
    assert!(received.len() > 250_000);
    assert_eq!(received, sent[..received.len()]);
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn a_slow_client_that_leaves_takes_its_connection_along() {
    let mut peer = peer();
    let (client, port) = peer.connect();
    peer.write(port, &pattern(300_000));
    peer.shut(port, Shutdown::BOTH);
    peer.run();
    assert_eq!(peer.guest.footprint().connections, 1);
    drop(client);
    peer.run();
    assert_eq!(peer.guest.footprint().connections, 0);
    assert_eq!(peer.guest.footprint().allocated, 0);
}

#[test]
fn a_reset_by_the_guest_in_mid_stream_closes_the_client() {
    let mut peer = peer();
    let (mut client, port) = peer.connect();
    peer.write(port, b"some");
    let reset = peer.socket(port).packet(Operation::Reset);
    peer.guest.send(&reset, &[]);
    peer.run();
    assert_eq!(read_now(&mut client, 100).unwrap(), b"some");
    assert!(is_closed(&mut client));
    assert_eq!(peer.guest.footprint().connections, 0);
    assert_eq!(peer.count(Operation::Reset), 0, "a RST is never answered with one");
}

#[test]
fn a_client_whose_last_bytes_the_guest_refused_reads_a_clean_end() {
    let mut peer = peer();
    peer.buffer_size = 4096;
    let (mut client, port) = peer.connect();
    assert_eq!(write_now(&mut client, &pattern(100_000)), 100_000);
    peer.run();
    peer.shut(port, Shutdown::BOTH);
    peer.run();
    assert!(is_closed(&mut client), "with bytes left in a closed socket this would be an error");
}

#[test]
fn a_guest_that_does_not_confirm_the_end_is_reset_in_time() {
    let mut peer = Peer::new(quick());
    let (client, port) = peer.connect();
    // The guest's kernel forgets the socket without a word.
    peer.sockets.remove(&port);
    peer.answers = false;
    drop(client);
    peer.guest.serve();
    let packets = peer.guest.packets();
    assert_eq!(packets.len(), 1);
    assert_eq!(peer.guest.footprint().connections, 1, "waits for the guest's RST");
    peer.run_until("close timeout", |peer| peer.guest.footprint().connections == 0);
    assert_eq!(peer.count(Operation::Reset), 1);
}

#[test]
fn what_a_client_left_for_a_guest_that_never_reads_is_given_up_in_time() {
    let mut peer = Peer::new(quick());
    peer.buffer_size = 1000;
    let (mut client, port) = peer.connect();
    client.write_all(&pattern(8000)).unwrap();
    drop(client);
    peer.run();
    // As long as it reads a little, it keeps the connection, longer than the timeout.
    for _ in 0..7 {
        std::thread::sleep(Duration::from_millis(100));
        peer.run();
        assert_eq!(peer.guest.footprint().connections, 1);
        assert_eq!(peer.read(port, 1000).len(), 1000);
    }
    peer.run();
    peer.read(port, 1000);
    peer.run();
    assert_eq!(peer.socket(port).shut, Shutdown::BOTH);
    let (mut client, port) = peer.connect();
    client.write_all(&pattern(5000)).unwrap();
    drop(client);
    peer.run();
    assert_eq!(peer.socket(port).shut, RECEIVES_NO_MORE);
    peer.run_until("linger timeout", |peer| peer.guest.footprint().connections == 0);
    assert!(peer.socket(port).reset);
}

#[test]
fn the_guest_cannot_dial() {
    let mut peer = peer();
    let request =
        Header::new(Address { cid: CID, port: 5000 }, Address { cid: HOST_CID, port: 80 }, Operation::Request);
    peer.guest.send(&request, &[]);
    peer.run();
    assert_eq!(peer.log, [request.refusal()]);
    assert_eq!(peer.guest.footprint().connections, 0);
}

#[test]
fn a_driver_that_resets_the_device_starts_afresh() {
    let mut peer = peer();
    let (mut client, first) = peer.connect();
    let mut silent = peer.guest.client();
    peer.run();
    peer.guest.device.reset();
    assert_eq!(peer.guest.footprint(), Footprint::default());
    assert!(is_closed(&mut client) && is_closed(&mut silent));
    let mut early = peer.guest.client();
    early.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
    assert!(!peer.guest.host_wants(Duration::from_millis(20)));
    peer.guest.forget_queues();
    peer.guest.activate();
    peer.guest.fill();
    peer.sockets.clear();
    peer.run();
    assert!(read_line(&mut early).starts_with("OK "));
    let (_client, port) = peer.connect();
    assert!(port > first + 1);
}

#[test]
fn a_driver_that_gives_up_without_a_reset_loses_its_connections() {
    let mut peer = peer();
    let (mut client, _) = peer.connect();
    peer.guest.device.host_ready(None).unwrap();
    assert!(is_closed(&mut client));
    let waiting = peer.guest.client();
    assert!(!peer.guest.host_wants(Duration::from_millis(20)));
    drop(waiting);
}

#[test]
fn a_device_whose_queues_broke_closes_clients_at_once() {
    for queue in [RECEIVE, TRANSMIT, EVENT] {
        let mut peer = peer();
        let (mut client, _) = peer.connect();
        let available = peer.guest.rings[queue].avail() + 2;
        vm_memory::Bytes::write_obj(&peer.guest.memory, 0x7777u16, vm_memory::GuestAddress(available)).unwrap();
        client.write_all(b"x").unwrap();
        let failed = peer.guest.call(|device, context| {
            device.queue_notified(queue, context).and_then(|()| device.host_ready(Some(context)))
        });
        if queue == EVENT {
            failed.unwrap();
            continue;
        }
        failed.unwrap_err();
        assert!(is_closed(&mut client));
        let mut late = peer.guest.client();
        assert!(peer.guest.host_wants(Duration::from_secs(5)));
        peer.guest.device.host_ready(None).unwrap();
        assert!(is_closed(&mut late));
        assert_eq!(peer.guest.footprint(), Footprint::default());
        assert!(!peer.guest.host_wants(Duration::from_millis(20)));
    }
}

#[test]
fn the_configuration_space_is_the_guests_cid() {
    let guest = Guest::powered(Setup::default());
    let mut config = [0xff; 12];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    guest.device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 12]);
}
