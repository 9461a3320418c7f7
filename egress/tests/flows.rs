//! What a guest's connections, datagrams and pings lead to, with the real egress process and dialer, in a network namespace.

#![allow(clippy::unwrap_used, reason = "a failure of a helper is a failure of its test")]

mod common;

use common::{
    guest::{Failed, ethernet},
    in_namespace,
    sandbox::{Sandbox, Setup, listed, public},
};
use sandboxvm_egress::stack::addresses::{GATEWAY_V4, GUEST_V4};
use sandboxvm_protocol::egress::{Decided, FlowEnd, Transport};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr},
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

fn listen(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Serves one connection by `serve`.
fn serve<R: Send + 'static>(
    listener: TcpListener,
    serve: impl FnOnce(TcpStream) -> R + Send + 'static,
) -> mpsc::Receiver<R> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let _ = sender.send(serve(stream));
    });
    receiver
}

fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn allowed_connections_carry_bytes_both_ways_and_are_recorded() {
    if !in_namespace("allowed_connections_carry_bytes_both_ways_and_are_recorded") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(listed(&["198.51.100.1", "2001:db8::1"], &[]));
    for address in ["198.51.100.1", "2001:db8::1"] {
        let (listener, to) = listen(address);
        serve(listener, |mut stream| {
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes.repeat(2)).unwrap();
        });
        let tcp = guest.connect(to).unwrap();
        guest.send(tcp, b"hello").unwrap();
        assert_eq!(guest.read_to_end(tcp).unwrap(), b"hellohello");
        guest.close(tcp);
        guest.rest();
        let record = sandbox.flow();
        assert_eq!((record.address, record.port), (to.ip(), to.port()));
        assert_eq!((record.bytes_out, record.bytes_in, record.end), (5, 10, FlowEnd::Closed));
        assert_eq!(record.decided, Decided::Allowed(Some(address.to_owned())));
    }
    let counters = sandbox.counters();
    assert_eq!((counters.flows, counters.open, counters.bytes_out, counters.bytes_in), (2, 0, 10, 20));
}

#[test]
fn refusals_are_immediate_and_say_why() {
    if !in_namespace("refusals_are_immediate_and_say_why") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(listed(&["198.51.100.1:80"], &["198.51.100.2"]));
    let mut check = |to: &str, reason: &str, rule: Option<&str>| {
        let to: SocketAddr = to.parse().unwrap();
        let begun = Instant::now();
        assert_eq!(guest.connect(to), Err(Failed::Reset), "{to}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{to}: {:?}", begun.elapsed());
        let record = sandbox.flow();
        let Decided::Refused { reason: given, rule: by } = record.decided else { panic!("{to} was allowed") };
        assert!(given.contains(reason), "{to}: {given}");
        assert_eq!((record.address, by.as_deref()), (to.ip(), rule));
    };
    check("198.51.100.1:81", "no rule allows", None);
    check("198.51.100.2:80", "a rule denies it", Some("198.51.100.2"));
    check("127.0.0.1:80", "loopback", None);
    check("169.254.169.254:80", "link-local", None);
    check("10.0.0.1:80", "private", None);
    check("[::ffff:169.254.169.254]:80", "link-local", None);
    check("[64:ff9b::a9fe:a9fe]:80", "link-local", None);
    check("198.18.0.1:80", "no rule allows", None);
    check("198.51.100.1:853", "name services", None);
}

#[test]
fn peers_that_refuse_are_told_from_those_that_are_not_there() {
    if !in_namespace("peers_that_refuse_are_told_from_those_that_are_not_there") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(public());
    assert_eq!(guest.connect("198.51.100.1:9".parse().unwrap()), Err(Failed::Reset));
    let record = sandbox.flow();
    assert_eq!((record.end, record.decided), (FlowEnd::NotEstablished, Decided::Allowed(None)));
    // There is no route to it in this namespace: smoltcp ignores the ICMP message that says so, Linux does not.
    let _ = guest.begin("1.2.3.4:80".parse().unwrap());
    assert_eq!(sandbox.flow().end, FlowEnd::NotEstablished);
}

#[test]
fn either_side_can_close_first() {
    if !in_namespace("either_side_can_close_first") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(public());
    let (listener, to) = listen("198.51.100.1");
    let served = serve(listener, |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&noise(300_000)).unwrap();
        bytes
    });
    let tcp = guest.connect(to).unwrap();
    guest.send(tcp, &noise(200_000)).unwrap();
    guest.close(tcp);
    assert!(guest.read_to_end(tcp).unwrap() == noise(300_000));
    assert!(served.recv_timeout(Duration::from_secs(20)).unwrap() == noise(200_000));
    guest.rest();
    assert_eq!(sandbox.flow().end, FlowEnd::Closed);

    let (listener, to) = listen("198.51.100.1");
    let served = serve(listener, |mut stream| {
        stream.write_all(&noise(300_000)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let tcp = guest.connect(to).unwrap();
    assert!(guest.read_to_end(tcp).unwrap() == noise(300_000));
    guest.send(tcp, &noise(200_000)).unwrap();
    guest.drained(tcp);
    guest.close(tcp);
    guest.closed(tcp);
    assert!(served.recv_timeout(Duration::from_secs(20)).unwrap() == noise(200_000));
    assert_eq!(sandbox.flow().end, FlowEnd::Closed);
}

#[test]
fn resets_pass_both_ways() {
    if !in_namespace("resets_pass_both_ways") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(public());
    let (listener, to) = listen("198.51.100.1");
    let served = serve(listener, |mut stream| stream.read(&mut [0; 10]).map_err(|error| error.kind()));
    let tcp = guest.connect(to).unwrap();
    guest.rest();
    guest.abort(tcp);
    assert_eq!(served.recv_timeout(Duration::from_secs(20)).unwrap(), Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(sandbox.flow().end, FlowEnd::Reset);

    let (listener, to) = listen("198.51.100.1");
    let served = serve(listener, |mut stream| {
        // An end with unread data is a reset.
        stream.read_exact(&mut [0; 1]).unwrap();
    });
    let tcp = guest.connect(to).unwrap();
    guest.send(tcp, b"two").unwrap();
    served.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(guest.read(tcp, 10), Err(Failed::Reset));
    assert_eq!(sandbox.flow().end, FlowEnd::Reset);
}

#[test]
fn slow_readers_on_both_sides_lose_nothing() {
    if !in_namespace("slow_readers_on_both_sides_lose_nothing") {
        return;
    }
    let (sandbox, mut guest) = Sandbox::start(public());
    let (listener, to) = listen("198.51.100.1");
    let served = serve(listener, |mut stream| {
        thread::sleep(Duration::from_secs(1));
        let mut bytes = vec![0; 20_000_000];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        bytes
    });
    let tcp = guest.connect(to).unwrap();
    let data = noise(20_000_000);
    guest.send(tcp, &data).unwrap();
    assert!(served.recv_timeout(Duration::ZERO).is_err());
    // The guest reads nothing for a while.
    thread::sleep(Duration::from_secs(1));
    assert!(guest.read_exact(tcp, 20_000_000).unwrap() == data);
    assert!(served.recv_timeout(Duration::from_secs(20)).unwrap() == data);
    assert!(sandbox.memory("VmRSS") < 16 * 1024, "{} KiB", sandbox.memory("VmRSS"));
}

#[test]
fn lost_frames_are_sent_again() {
    if !in_namespace("lost_frames_are_sent_again") {
        return;
    }
    let (_sandbox, mut guest) = Sandbox::start(public());
    let (listener, to) = listen("198.51.100.1");
    serve(listener, |mut stream| {
        stream.write_all(&noise(2_000_000)).unwrap();
        stream.read(&mut [0]).unwrap();
    });
    let mut count = 0;
    guest.lose(move || {
        count += 1;
        count % 7 == 0
    });
    let tcp = guest.connect(to).unwrap();
    assert!(guest.read_exact(tcp, 2_000_000).unwrap() == noise(2_000_000));
}

#[test]
fn datagrams_pass_both_ways_and_refusals_come_as_icmp() {
    if !in_namespace("datagrams_pass_both_ways_and_refusals_come_as_icmp") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(listed(&["198.51.100.1", "2001:db8::1"], &[]));
    for address in ["198.51.100.1", "2001:db8::1"] {
        let server = UdpSocket::bind((address, 0)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let to = server.local_addr().unwrap();
        let udp = guest.udp();
        for size in [0, 1, 1400, 9000, 60_000] {
            guest.send_to(udp, &noise(size), to);
            // Before the first one, the guest asks for the gateway's hardware address.
            guest.rest();
            let mut buffer = vec![0; 65_536];
            let (count, from) = server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{size}: {error}"));
            assert!(buffer[..count] == noise(size));
            server.send_to(&buffer[..count], from).unwrap();
            let (bytes, from) = guest.receive_from(udp, Duration::from_secs(5)).unwrap();
            assert!(bytes == noise(size) && from == to);
        }
    }
    assert_eq!(sandbox.counters().open, 2);
    // A port where no program listens, and an address that is not allowed.
    for (to, code) in [("198.51.100.1:9", 3), ("198.51.100.2:9", 13)] {
        guest.card.send(&datagram(to.parse().unwrap()));
        let frame = loop {
            let frame = guest.frame(Duration::from_secs(5)).unwrap_or_else(|| panic!("nothing from {to}"));
            if frame[12..14] == [8, 0] && frame[23] == 1 {
                break frame;
            }
        };
        assert_eq!(frame[34..36], [3, code], "{to}");
    }
    let record = sandbox.flow();
    assert_eq!((record.transport, record.end), (Transport::Udp, FlowEnd::NotEstablished));
    for port in [443, 853, 5353] {
        guest.card.send(&datagram(format!("198.51.100.2:{port}").parse().unwrap()));
    }
    let refused: Vec<u16> = (0..3).map(|_| sandbox.flow().port).collect();
    assert!([443, 853, 5353].iter().all(|port| refused.contains(port)), "{refused:?}");
}

/// A frame with a datagram of the guest.
fn datagram(to: SocketAddrV4) -> Vec<u8> {
    let mut bytes = vec![0; 29];
    let ip = Ipv4Repr {
        src_addr: GUEST_V4,
        dst_addr: *to.ip(),
        next_header: IpProtocol::Udp,
        payload_len: 9,
        hop_limit: 64,
    };
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    bytes[20..22].copy_from_slice(&3333_u16.to_be_bytes());
    bytes[22..24].copy_from_slice(&to.port().to_be_bytes());
    bytes[25] = 9;
    ethernet([8, 0], &bytes)
}

fn ping(to: Ipv4Addr, sequence: u16) -> Vec<u8> {
    let echo = Icmpv4Repr::EchoRequest { ident: 77, seq_no: sequence, data: b"payload" };
    let ip = Ipv4Repr {
        src_addr: GUEST_V4,
        dst_addr: to,
        next_header: IpProtocol::Icmp,
        payload_len: echo.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 20 + echo.buffer_len()];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[20..]), &ChecksumCapabilities::default());
    ethernet([8, 0], &bytes)
}

#[test]
fn pings_of_the_gateway_and_of_allowed_hosts_are_answered() {
    if !in_namespace("pings_of_the_gateway_and_of_allowed_hosts_are_answered") {
        return;
    }
    let (_sandbox, mut guest) = Sandbox::start(listed(&["198.51.100.1"], &[]));
    for (to, kind) in [(GATEWAY_V4, 0), (Ipv4Addr::new(198, 51, 100, 1), 0), (Ipv4Addr::new(198, 51, 100, 2), 3)] {
        for sequence in 1..3 {
            guest.card.send(&ping(to, sequence));
            let frame = guest.frame(Duration::from_secs(5)).expect("an answer");
            assert_eq!((frame[34], &frame[26..30]), (kind, &to.octets()[..]));
            if kind == 0 {
                let reply = Icmpv4Packet::new_checked(&frame[34..]).unwrap();
                assert!(reply.verify_checksum());
                assert_eq!((reply.echo_ident(), reply.echo_seq_no(), reply.data()), (77, sequence, &b"payload"[..]));
            }
        }
    }
}

#[test]
fn services_of_the_host_are_reached_at_the_gateway() {
    if !in_namespace("services_of_the_host_are_reached_at_the_gateway") {
        return;
    }
    let (listener, at) = listen("127.0.0.1");
    serve(listener, |mut stream| stream.write_all(b"service").unwrap());
    let rule = format!("host:{}", at.port());
    let setup = Setup { host_ports: vec![at.port()], ..Setup::from(listed(&[&rule], &[])) };
    let (mut sandbox, mut guest) = Sandbox::start(setup);
    let tcp = guest.connect(SocketAddr::new(GATEWAY_V4.into(), at.port())).unwrap();
    assert_eq!(guest.read_to_end(tcp).unwrap(), b"service");
    guest.close(tcp);
    guest.rest();
    assert_eq!(sandbox.flow().decided, Decided::Allowed(Some(rule)));
}

#[test]
fn three_hundred_connections_at_once_are_carried_and_then_one_more() {
    if !in_namespace("three_hundred_connections_at_once_are_carried_and_then_one_more") {
        return;
    }
    let mut settings = public();
    settings.limits.flows_per_second = 1000;
    let (mut sandbox, mut guest) = Sandbox::start(settings);
    guest.set_buffer(4096);
    let (listener, to) = listen("198.51.100.1");
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let (mut stream, mut bytes) = (stream.unwrap(), [0; 4]);
                while stream.read_exact(&mut bytes).is_ok() {
                    stream.write_all(&bytes).unwrap();
                }
            });
        }
    });
    let all: Vec<_> = (0..300).map(|_| guest.begin(to)).collect();
    for (number, tcp) in all.iter().enumerate() {
        guest.connected(*tcp).unwrap();
        guest.send(*tcp, &(number as u32).to_le_bytes()).unwrap();
    }
    for (number, tcp) in all.iter().enumerate() {
        assert_eq!(guest.read_exact(*tcp, 4).unwrap(), (number as u32).to_le_bytes());
    }
    let one_more = guest.connect(to).unwrap();
    guest.send(one_more, b"more").unwrap();
    assert_eq!(guest.read_exact(one_more, 4).unwrap(), b"more");
    assert_eq!(sandbox.counters().open, 301);
    println!("{} KiB with 301 connections", sandbox.memory("VmRSS"));
    for tcp in all {
        guest.close(tcp);
    }
    guest.rest();
    assert_eq!(sandbox.counters().open, 1);
}
