//! A guest that sends what no driver would, or far too much of it. The egress process stays alive, its memory has a bound, and
//! it answers afterwards. `EGRESS_SOAK=1` runs a hundred times as much.

#![allow(clippy::unwrap_used, reason = "a failure of a helper is a failure of its test")]

mod common;

use common::{
    guest::{Guest, ethernet, ethernet_to},
    in_namespace,
    sandbox::{Sandbox, listed, public},
};
use sandboxvm_egress::stack::addresses::{GATEWAY_V4, GUEST_V4};
use sandboxvm_protocol::egress::NetworkSettings;
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{EthernetAddress, IpProtocol, Ipv4Packet, Ipv4Repr},
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

/// Maximum size of the process in KiB: the buffers of 1,024 flows, and itself.
const BOUND: u64 = (70 + 16) * 1024;

fn soak(count: usize) -> usize {
    if std::env::var_os("EGRESS_SOAK").is_some() { count * 100 } else { count }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// An IPv4 packet of the guest.
fn v4(to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let ip =
        Ipv4Repr { src_addr: GUEST_V4, dst_addr: to, next_header: protocol, payload_len: payload.len(), hop_limit: 64 };
    let mut bytes = vec![0; 20 + payload.len()];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    bytes[20..].copy_from_slice(payload);
    bytes
}

/// A TCP segment.
fn segment(from: u16, to: u16, (sequence, confirmed): (u32, u32), flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(confirmed.to_be_bytes());
    bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(data);
    bytes
}

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// A server that sends back what it reads.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((SERVER, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..count]);
                }
            });
        }
    });
    at
}

/// Discards what came, so that the process is not held up.
fn drain(guest: &mut Guest) {
    while guest.frame(Duration::ZERO).is_some() {}
}

#[track_caller]
fn assert_serves(sandbox: &mut Sandbox, guest: &mut Guest, at: SocketAddr) {
    sandbox.assert_alive();
    drain(guest);
    let until = Instant::now() + Duration::from_secs(30);
    // Its flows, and those of a second, may be used up.
    let tcp = loop {
        match guest.connect(at) {
            Ok(tcp) => break tcp,
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
        }
        thread::sleep(Duration::from_millis(100));
    };
    guest.send(tcp, b"ping").unwrap();
    assert_eq!(guest.read_exact(tcp, 4).unwrap(), b"ping");
    let size = sandbox.memory("VmHWM");
    println!("{size} KiB at most");
    assert!(size < BOUND, "{size} KiB");
}

#[test]
fn random_frames_do_no_harm() {
    if !in_namespace("random_frames_do_no_harm") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(public());
    let at = echo();
    let mut random = Random(1);
    let protocols = [IpProtocol::Tcp, IpProtocol::Udp, IpProtocol::Icmp, IpProtocol::Unknown(200)];
    for number in 0..soak(10_000) {
        let len = random.below(120);
        let bytes = random.bytes(len);
        match random.below(8) {
            0 => guest.card.send_raw(&[&[0], &bytes[..]].concat()),
            1 => guest.card.send(&bytes),
            2 => guest.card.send(&ethernet([8, 6], &bytes)),
            3 => guest.card.send(&ethernet_to(EthernetAddress::BROADCAST, [0x86, 0xdd], &bytes)),
            4 => guest.card.send(&ethernet([8, 0], &bytes)),
            5 => guest.card.send(&ethernet([8, 0], &v4(SERVER, protocols[number % 4], &bytes))),
            6 => {
                // Options, a fragment, wrong lengths: one byte of a good header is another.
                let mut packet = v4(SERVER, protocols[number % 4], &bytes);
                let (at, byte) = (random.below(20), random.next() as u8);
                packet[at] = byte;
                guest.card.send(&ethernet([8, 0], &packet));
            }
            _ => {
                let mut packet = segment(1, at.port(), (random.next(), random.next()), random.next() as u8, &bytes);
                packet[12] = random.next() as u8;
                guest.card.send(&ethernet([8, 0], &v4(SERVER, IpProtocol::Tcp, &packet)));
            }
        }
        if number % 16 == 0 {
            drain(&mut guest);
        }
    }
    assert_serves(&mut sandbox, &mut guest, at);
}

#[test]
fn segments_of_an_open_connection_may_overlap_in_any_way() {
    if !in_namespace("segments_of_an_open_connection_may_overlap_in_any_way") {
        return;
    }
    let mut settings = public();
    settings.limits.flows_per_second = 100_000;
    let (mut sandbox, mut guest) = Sandbox::start(settings.clone());
    let at = echo();
    let mut random = Random(2);
    for round in 0..soak(20) {
        if round % 500 == 499 {
            // None of them is closed.
            sandbox.configure(NetworkSettings::default()).unwrap();
            sandbox.configure(settings.clone()).unwrap();
            sandbox.assert_alive();
            drain(&mut guest);
        }
        let from = 2000 + u16::try_from(round % 1000).unwrap();
        let send = |guest: &mut Guest, numbers, flags, data: &[u8]| {
            let segment = segment(from, at.port(), numbers, flags, data);
            guest.card.send(&ethernet([8, 0], &v4(SERVER, IpProtocol::Tcp, &segment)));
        };
        send(&mut guest, (1000, 0), 2, &[]);
        let confirmed = loop {
            let Some(frame) = guest.frame(Duration::from_secs(5)) else { panic!("no answer to a SYN") };
            if frame[12..14] == [8, 0] && frame.len() > 50 && frame[47] == 0x12 && frame[36..38] == from.to_be_bytes() {
                break u32::from_be_bytes(frame[38..42].try_into().unwrap()).wrapping_add(1);
            }
        };
        send(&mut guest, (1001, confirmed), 0x10, &[]);
        for _ in 0..200 {
            let sequence = 1001_u32.wrapping_add(random.below(100_000) as u32).wrapping_sub(random.below(2000) as u32);
            let len = random.below(3000);
            let flags = [0x10, 0x18, 0x11, 0x10, 0x30, 0x10][random.below(6)];
            let ack = confirmed.wrapping_add(random.below(3) as u32).wrapping_sub(random.below(3) as u32);
            send(&mut guest, (sequence, ack), flags, &random.bytes(len));
            drain(&mut guest);
        }
    }
    assert_serves(&mut sandbox, &mut guest, at);
}

#[test]
fn floods_of_first_segments_are_refused_without_memory() {
    if !in_namespace("floods_of_first_segments_are_refused_without_memory") {
        return;
    }
    let mut settings = listed(&["198.51.100.1"], &[]);
    settings.limits.flows_per_second = 1_000_000;
    let (mut sandbox, mut guest) = Sandbox::start(settings);
    let at = echo();
    let begun = Instant::now();
    // To an address that is allowed, from as many ports as there are, and to addresses that are not. None is confirmed.
    for number in 0..soak(100_000) as u32 {
        let from = (number % 60_000 + 1) as u16;
        let to = if number % 2 == 0 { SERVER } else { Ipv4Addr::from(0x0a00_0000 + number) };
        let syn = segment(from, at.port(), (number, 0), 2, &[]);
        guest.card.send(&ethernet([8, 0], &v4(to, IpProtocol::Tcp, &syn)));
        if number % 16 == 0 {
            drain(&mut guest);
        }
    }
    println!("100000 first segments in {:?}, {:?} of the process", begun.elapsed(), sandbox.cpu_time());
    let counters = sandbox.counters();
    println!("{counters:?}");
    assert!(counters.open <= 1024);
    assert_serves(&mut sandbox, &mut guest, at);
}

#[test]
fn floods_of_datagrams_and_questions_have_a_bound() {
    if !in_namespace("floods_of_datagrams_and_questions_have_a_bound") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(public());
    let at = echo();
    let mut random = Random(3);
    let begun = Instant::now();
    for number in 0..soak(10_000) {
        let len = random.below(40);
        let data = random.bytes(len);
        let port: u16 = if number % 4 == 0 { 53 } else { 7 };
        let to = if number % 8 < 4 { SERVER } else { GATEWAY_V4 };
        let mut datagram = Vec::new();
        datagram.extend(((number % 5000 + 1) as u16).to_be_bytes());
        datagram.extend(port.to_be_bytes());
        datagram.extend(((data.len() + 8) as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(data);
        guest.card.send(&ethernet([8, 0], &v4(to, IpProtocol::Udp, &datagram)));
        if number % 16 == 0 {
            drain(&mut guest);
        }
    }
    println!("{:?}, {:?} of the process", begun.elapsed(), sandbox.cpu_time());
    assert_serves(&mut sandbox, &mut guest, at);
}

#[test]
fn a_guest_that_reads_nothing_holds_up_nothing_but_itself() {
    if !in_namespace("a_guest_that_reads_nothing_holds_up_nothing_but_itself") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(public());
    let at = echo();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0x73, 0x62, 0x78, 0, 2][..], &GUEST_V4.octets(), &[0; 6], &[10, 0, 0, 1]];
    let question = ethernet([8, 6], &arp.concat());
    for _ in 0..soak(10_000) {
        guest.card.send(&question);
    }
    sandbox.assert_alive();
    // It does not spin while it waits for the guest.
    let before = sandbox.cpu_time();
    thread::sleep(Duration::from_secs(1));
    let used = sandbox.cpu_time() - before;
    assert!(used < Duration::from_millis(100), "{used:?}");
    assert_serves(&mut sandbox, &mut guest, at);
}

#[test]
fn an_idle_process_is_small_and_does_nothing() {
    if !in_namespace("an_idle_process_is_small_and_does_nothing") {
        return;
    }
    let (mut sandbox, mut guest) = Sandbox::start(public());
    let at = echo();
    let tcp = guest.connect(at).unwrap();
    guest.send(tcp, b"ping").unwrap();
    assert_eq!(guest.read_exact(tcp, 4).unwrap(), b"ping");
    guest.rest();
    let before = sandbox.cpu_time();
    thread::sleep(Duration::from_secs(3));
    let used = sandbox.cpu_time() - before;
    println!("{} KiB, {} KiB of them its own, {used:?} in 3 s", sandbox.memory("VmRSS"), sandbox.memory("RssAnon"));
    assert!(used <= Duration::from_millis(20), "{used:?}");
    sandbox.assert_alive();
}
