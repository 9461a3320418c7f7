//! The network card of a real guest: what the agent configures, frames in both directions, and the
//! end of connections that a copy inherits. The test is the peer: it reads and writes frames.

use sandboxvm_protocol::{
    agent::{
        self, AgentMessage, CText, ExecRequest, ExitStatus, GuestIdentity, HostMessage, MAX_AGENT_MESSAGE,
        MAX_HOST_MESSAGE,
    },
    frame::{FrameDecoder, FrameKind},
    ids::SandboxName,
    network::{GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, MacAddress},
};
use sandboxvm_tests::{
    artefacts::{Artefacts, kvm_is_wanted},
    bare::{BareMachine, Bounds, Cable, Shape},
};
use std::{
    io::{Read, Write},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    time::{Duration, SystemTime},
};

/// Bytes of the device's header and of an Ethernet header.
const HEADER: usize = 12;
const ETHERNET: usize = 14;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];
const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Number of requests until the guest has to answer one.
const REQUESTS: usize = 30;
/// A peer that is not the gateway.
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The internet checksum (RFC 1071).
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).expect("it is folded")).to_be_bytes()
}

/// A packet of the cable from the gateway to the guest. Its checksums are right.
fn to_guest(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&[0; HEADER], &MacAddress::GUEST.bytes()[..], &MacAddress::GATEWAY.bytes(), &kind, payload].concat()
}

fn ipv4(source: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("a packet").to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(GUEST_IPV4.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    to_guest(IPV4, &[&header, payload].concat())
}

fn ipv6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a packet").to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], protocol, 255];
    to_guest(IPV6, &[&header[..], &GATEWAY_IPV6.octets(), &GUEST_IPV6.octets(), payload].concat())
}

/// Returns an echo request or reply of this type. `pseudo` is what its checksum covers in addition.
fn echo(kind: u8, pseudo: &[u8], length: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
    message.extend((0..length - 8).map(|at| at as u8));
    let sum = checksum(&[pseudo, &message]);
    message[2..4].copy_from_slice(&sum);
    message
}

fn pseudo_ipv6(from: [u8; 16], to: [u8; 16], length: usize) -> Vec<u8> {
    [&from[..], &to, &u32::try_from(length).expect("a packet").to_be_bytes(), &[0, 0, 0, ICMPV6]].concat()
}

/// Waits for a frame of the guest that `is` accepts, and returns what is behind its Ethernet
/// header. The guest sends others on its own.
fn wait_for(cable: &Cable, kind: [u8; 2], is: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        if let Some(payload) = read(cable, kind).filter(|payload| is(payload)) {
            return payload;
        }
    }
}

/// Reads the next frame, and returns what is behind its Ethernet header if it is of this kind.
fn read(cable: &Cable, kind: [u8; 2]) -> Option<Vec<u8>> {
    let packet = cable.receive().expect("the link stays");
    let (headers, payload) = packet.split_at(HEADER + ETHERNET);
    assert_eq!(headers[HEADER + 6..HEADER + 12], MacAddress::GUEST.bytes());
    (headers[HEADER + 12..] == kind).then(|| payload.to_vec())
}

fn arp_is_answered(cable: &Cable) {
    let arp = |operation: u8, from: MacAddress, from_ip: Ipv4Addr, to: [u8; 6], to_ip: Ipv4Addr| {
        [&[0, 1, 8, 0, 6, 4, 0, operation], &from.bytes()[..], &from_ip.octets(), &to, &to_ip.octets()].concat()
    };
    let request = to_guest(ARP, &arp(1, MacAddress::GATEWAY, GATEWAY_IPV4, [0; 6], GUEST_IPV4));
    let expected = arp(2, MacAddress::GUEST, GUEST_IPV4, MacAddress::GATEWAY.bytes(), GATEWAY_IPV4);
    // The guest's kernel drops what it would send until it has handled the news of the link.
    for _ in 0..REQUESTS {
        cable.send(&request);
        while cable.has_packet(Duration::from_secs(2)) {
            if read(cable, ARP).is_some_and(|payload| payload.starts_with(&expected)) {
                return;
            }
        }
    }
    panic!("the guest answers none of {REQUESTS} requests");
}

fn echo_is_answered(cable: &Cable, length: usize) {
    cable.send(&ipv4(GATEWAY_IPV4, ICMP, &echo(8, &[], length)));
    let answer = wait_for(cable, IPV4, |payload| payload[9] == ICMP);
    assert_eq!((&answer[12..16], &answer[16..20]), (&GUEST_IPV4.octets()[..], &GATEWAY_IPV4.octets()[..]));
    assert!(answer[20..] == echo(0, &[], length), "an echo reply of {length} bytes differs");

    let (gateway, guest) = (GATEWAY_IPV6.octets(), GUEST_IPV6.octets());
    cable.send(&ipv6(ICMPV6, &echo(128, &pseudo_ipv6(gateway, guest, length), length)));
    let answer = wait_for(cable, IPV6, |payload| payload[6] == ICMPV6 && payload[40] == 129);
    assert!(answer[40..] == echo(129, &pseudo_ipv6(guest, gateway, length), length), "an echo reply differs");
}

/// A connection to the agent.
struct Agent {
    stream: UnixStream,
    decoder: FrameDecoder,
}

impl Agent {
    fn ask(machine: &BareMachine, request: &HostMessage) -> Self {
        let mut stream = machine.connect(agent::PORT);
        let mut bytes = Vec::new();
        let hello = HostMessage::Hello { oldest: agent::WIRE.oldest, newest: agent::WIRE.version };
        for message in [&hello, request] {
            agent::WIRE.append_message(&mut bytes, message, MAX_HOST_MESSAGE).expect("a small message");
        }
        stream.write_all(&bytes).expect("the agent reads");
        Self { stream, decoder: FrameDecoder::new(agent::WIRE, MAX_AGENT_MESSAGE) }
    }

    fn run(machine: &BareMachine, argv: &[&str]) -> Self {
        let argv = argv.iter().map(|text| CText::try_from(text.as_bytes().to_vec()).expect("no NUL")).collect();
        Self::ask(machine, &HostMessage::Exec(ExecRequest::plain(argv)))
    }

    /// Waits for a message, or adds output to `output`.
    fn next(&mut self, output: &mut String) -> Option<AgentMessage> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("an agent sends frames") {
                if frame.kind == FrameKind::Message {
                    return Some(agent::WIRE.decode_message(frame.body).expect("an agent sends messages"));
                }
                output.push_str(&String::from_utf8_lossy(frame.body));
                return None;
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes).expect("the agent answers");
            assert!(count > 0, "the agent closed the connection after {output:?}");
            self.decoder.push(&bytes[..count]);
        }
    }

    /// Returns the output of a process that ends with 0.
    fn output(mut self) -> String {
        let mut output = String::new();
        loop {
            match self.next(&mut output) {
                None | Some(AgentMessage::Hello { .. } | AgentMessage::Started { .. }) => {}
                Some(AgentMessage::Exited(status)) => {
                    assert_eq!(status, ExitStatus::Code(0), "{output}");
                    return output;
                }
                Some(other) => panic!("{other:?} after {output}"),
            }
        }
    }
}

fn configuration_is_complete(machine: &BareMachine) {
    let output = Agent::run(
        machine,
        &[
            "head",
            "/sys/class/net/eth0/address",
            "/sys/class/net/eth0/mtu",
            "/sys/class/net/eth0/carrier",
            "/etc/resolv.conf",
            "/etc/hosts",
            "/proc/net/route",
            "/proc/net/ipv6_route",
            "/proc/net/if_inet6",
            "/proc/sys/net/ipv4/ping_group_range",
        ],
    )
    .output();
    eprintln!("{output}");
    for expected in [
        "address <==\n02:73:62:78:00:02\n",
        "mtu <==\n65520\n",
        "carrier <==\n0\n",
        "resolv.conf <==\nnameserver 198.18.0.1\n",
        "\n198.18.0.1 host.internal\n",
        // The default route by way of 198.18.0.1, in the byte order of the processor.
        "eth0\t00000000\t010012C6\t",
        "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd00005b000000000000000000000001",
        // Neither tentative nor temporary.
        "fd00005b000000000000000000000002 02 40 00 82     eth0\n",
        "ping_group_range <==\n0\t2147483647\n",
    ] {
        assert!(output.contains(expected), "{expected:?} is missing");
    }
    assert!(!output.contains("fe80"), "no link-local address");
}

/// A program of the guest reads from a connection. Its machine is named again, as a copy is, and the
/// program sees an end.
fn inherited_connections_end(machine: &BareMachine, cable: &Cable) {
    const SCRIPT: &str = "exec 3<>/dev/tcp/192.0.2.1/80; echo open; read -r -u 3 line; echo ended";
    let mut reader = Agent::run(machine, &["bash", "-c", SCRIPT]);
    let is_tcp = |payload: &[u8], flags: u8| payload[9] == TCP && payload[20 + 13] & 0x3f == flags;
    let syn = wait_for(cable, IPV4, |payload| is_tcp(payload, SYN));
    assert_eq!(syn[16..20], SERVER.octets());
    let port = &syn[20..22];
    let number = u32::from_be_bytes(syn[24..28].try_into().expect("four bytes")).wrapping_add(1).to_be_bytes();
    let mut segment = [&[0, 80][..], port, &[0, 0, 3, 232], &number, &[0x50, SYN | ACK, 255, 255, 0, 0, 0, 0]].concat();
    let pseudo = [&SERVER.octets()[..], &GUEST_IPV4.octets(), &[0, TCP, 0, 20]].concat();
    let sum = checksum(&[&pseudo, &segment]);
    segment[16..18].copy_from_slice(&sum);
    cable.send(&ipv4(SERVER, TCP, &segment));
    wait_for(cable, IPV4, |payload| is_tcp(payload, ACK));
    let mut output = String::new();
    while !output.contains("open") {
        assert!(!matches!(reader.next(&mut output), Some(AgentMessage::Exited(_))), "{output}");
    }

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_nanos();
    let identity = GuestIdentity {
        wall_clock_ns: u64::try_from(now).expect("it is before 2554"),
        entropy: [7; 32],
        hostname: SandboxName::try_from("copy".to_owned()).expect("letters"),
        machine_id: [9; 16],
    };
    let mut naming = Agent::ask(machine, &HostMessage::SetIdentity(identity));
    let mut none = String::new();
    while naming.next(&mut none) != Some(AgentMessage::IdentitySet) {}
    assert!(reader.output().contains("ended"));
}

#[test]
fn a_guest_uses_its_card_and_loses_inherited_connections() {
    if !kvm_is_wanted() {
        return;
    }
    let bounds = Bounds { private_kib: 32 << 10, descriptors: 100 };
    let shape = Shape { memory_mib: 256, bounds, ..Shape::default() };
    let mut machine = BareMachine::boot_linux(&Artefacts::find(), shape);
    configuration_is_complete(&machine);
    let cable = machine.attach_network();
    arp_is_answered(&cable);
    // Of the maximum size, which needs many receive buffers, and small.
    for length in [64, 65_000] {
        echo_is_answered(&cable, length);
    }
    inherited_connections_end(&machine, &cable);
    let stats = machine.network_stats();
    assert_eq!(stats.received.dropped, 0, "{stats:?}");
    eprintln!("{stats:?}\n{}", machine.said());
    let _ = machine.stop().typed();
}
