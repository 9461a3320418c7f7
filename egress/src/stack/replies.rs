//! Packets that the gateway itself sends: answers to questions for its hardware address, to pings of its own, refusals,
//! and datagrams.

use super::{
    addresses::{GATEWAY_MAC, GUEST_MAC, MTU, guest_for},
    outlet::Outlet,
    packet::{Content, NEIGHBOR_FLAGS, Packet},
};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr,
        Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr,
        Ipv6Packet, Ipv6Repr, NdiscRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
    },
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a refused packet that its refusal repeats: the IP header and the ports, as programs need them.
const REPEATED: usize = 128;

/// Why a packet was not forwarded, as ICMP says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No program listens on the port.
    Port,
    /// There is no way to the host.
    Host,
    /// It is not allowed.
    Prohibited,
}

/// Answers a question for a hardware address. The gateway answers for every address but the guest's, so that what is not
/// allowed is refused immediately instead of silently.
pub fn arp(outlet: &mut Outlet, source: Ipv4Addr, target: Ipv4Addr) {
    // A question without a source looks for another owner of the target, and there is none.
    if source.is_unspecified() || target == source || IpAddr::V4(target) == guest_for(IpAddr::V4(target)) {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: GATEWAY_MAC,
        source_protocol_addr: target,
        target_hardware_addr: GUEST_MAC,
        target_protocol_addr: source,
    };
    outlet.send(EthernetProtocol::Arp, reply.buffer_len(), |bytes| reply.emit(&mut ArpPacket::new_unchecked(bytes)));
}

/// The same for IPv6.
pub fn neighbor(outlet: &mut Outlet, source: Ipv6Addr, target: Ipv6Addr) {
    let is_guests = IpAddr::V6(target) == guest_for(IpAddr::V6(target));
    if source.is_unspecified() || source.is_multicast() || target == source || target.is_multicast() || is_guests {
        return;
    }
    let reply = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NEIGHBOR_FLAGS,
        target_addr: target,
        lladdr: Some(GATEWAY_MAC.into()),
    });
    send_v6(outlet, target, source, 255, &reply);
}

/// Answers an echo request to the gateway itself.
pub fn echo(outlet: &mut Outlet, packet: &Packet<'_>) {
    let Content::Echo { identifier, sequence } = packet.content else { return };
    echo_reply(outlet, packet.destination, identifier, sequence, packet.data());
}

/// Sends the guest an echo reply. Returns false if no frame can be written.
pub fn echo_reply(outlet: &mut Outlet, peer: IpAddr, identifier: u16, sequence: u16, data: &[u8]) -> bool {
    if !outlet.is_free() || data.len() > MTU - 48 {
        return false;
    }
    match peer {
        IpAddr::V4(peer) => {
            send_v4(outlet, peer, &Icmpv4Repr::EchoReply { ident: identifier, seq_no: sequence, data });
        }
        IpAddr::V6(peer) => {
            let IpAddr::V6(guest) = guest_for(IpAddr::V6(peer)) else { return false };
            send_v6(outlet, peer, guest, 64, &Icmpv6Repr::EchoReply { ident: identifier, seq_no: sequence, data });
        }
    }
    true
}

/// Refuses a packet: a TCP segment by a reset, everything else by ICMP.
pub fn refuse(outlet: &mut Outlet, packet: &Packet<'_>, why: Unreachable) {
    match packet.content {
        Content::Tcp { .. } => reset(outlet, packet),
        Content::Udp { .. } | Content::Echo { .. } => unreachable(outlet, packet.bytes, why),
    }
}

/// Answers a TCP segment that belongs to no connection by a reset (RFC 9293, 3.10.7.1).
pub fn reset(outlet: &mut Outlet, packet: &Packet<'_>) {
    let Ok(segment) = TcpPacket::new_checked(packet.payload()) else { return };
    if segment.rst() {
        return;
    }
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        // `segment_len` counts the data, SYN and FIN.
        (TcpSeqNumber(0), Some(segment.seq_number() + segment.segment_len()))
    };
    let reply = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (source, guest) = (packet.destination, guest_for(packet.destination));
    send_ip(outlet, source, IpProtocol::Tcp, reply.buffer_len(), |bytes| {
        reply.emit(
            &mut TcpPacket::new_unchecked(bytes),
            &IpAddress::from(source),
            &IpAddress::from(guest),
            &ChecksumCapabilities::default(),
        );
    });
}

/// Answers the packet `refused` of the guest by "destination unreachable".
pub fn unreachable(outlet: &mut Outlet, refused: &[u8], why: Unreachable) {
    match refused.first().map(|byte| byte >> 4) {
        Some(4) => {
            let Ok(packet) = Ipv4Packet::new_checked(refused) else { return };
            let Ok(header) = Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored()) else { return };
            let payload = packet.payload();
            let reason = match why {
                Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
                Unreachable::Host => Icmpv4DstUnreachable::HostUnreachable,
                Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
            };
            let data = &payload[..payload.len().min(REPEATED)];
            send_v4(outlet, packet.dst_addr(), &Icmpv4Repr::DstUnreachable { reason, header, data });
        }
        Some(6) => {
            let Ok(packet) = Ipv6Packet::new_checked(refused) else { return };
            let Ok(header) = Ipv6Repr::parse(&packet) else { return };
            let payload = packet.payload();
            let reason = match why {
                Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
                Unreachable::Host => Icmpv6DstUnreachable::AddrUnreachable,
                Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
            };
            let data = &payload[..payload.len().min(REPEATED)];
            let reply = Icmpv6Repr::DstUnreachable { reason, header, data };
            send_v6(outlet, packet.dst_addr(), packet.src_addr(), 64, &reply);
        }
        _ => {}
    }
}

/// Sends the guest a datagram whose payload `read` writes. Returns false if no frame can be written; `read` is not called
/// then.
pub fn datagram(
    outlet: &mut Outlet,
    (peer, from): (IpAddr, u16),
    to: u16,
    read: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> bool {
    let header = header_of(peer);
    outlet.send_up_to(kind_of(peer), MTU, |bytes| {
        let len = read(&mut bytes[header + 8..])?;
        let repr = UdpRepr { src_port: from, dst_port: to };
        let (head, body) = bytes.split_at_mut(header);
        emit_header(head, peer, IpProtocol::Udp, 8 + len);
        // The payload is in its place already.
        repr.emit(
            &mut UdpPacket::new_unchecked(&mut body[..8 + len]),
            &IpAddress::from(peer),
            &IpAddress::from(guest_for(peer)),
            len,
            |_| {},
            &ChecksumCapabilities::default(),
        );
        Some(header + 8 + len)
    })
}

/// Returns the kind of frame that carries packets of this version.
#[must_use]
pub fn kind_of(address: IpAddr) -> EthernetProtocol {
    match address {
        IpAddr::V4(_) => EthernetProtocol::Ipv4,
        IpAddr::V6(_) => EthernetProtocol::Ipv6,
    }
}

fn header_of(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    }
}

fn send_v4(outlet: &mut Outlet, source: Ipv4Addr, reply: &Icmpv4Repr<'_>) {
    send_ip(outlet, source.into(), IpProtocol::Icmp, reply.buffer_len(), |bytes| {
        reply.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    });
}

fn send_v6(outlet: &mut Outlet, source: Ipv6Addr, target: Ipv6Addr, hop_limit: u8, reply: &Icmpv6Repr<'_>) {
    let header = Ipv6Repr {
        src_addr: source,
        dst_addr: target,
        next_header: IpProtocol::Icmpv6,
        payload_len: reply.buffer_len(),
        hop_limit,
    };
    outlet.send(EthernetProtocol::Ipv6, header.buffer_len() + reply.buffer_len(), |bytes| {
        header.emit(&mut Ipv6Packet::new_unchecked(&mut *bytes));
        let mut packet = Icmpv6Packet::new_unchecked(&mut bytes[header.buffer_len()..]);
        reply.emit(&source, &target, &mut packet, &ChecksumCapabilities::default());
    });
}

fn send_ip(outlet: &mut Outlet, source: IpAddr, protocol: IpProtocol, len: usize, write: impl FnOnce(&mut [u8])) {
    let header = header_of(source);
    outlet.send(kind_of(source), header + len, |bytes| {
        let (head, body) = bytes.split_at_mut(header);
        emit_header(head, source, protocol, len);
        write(body);
    });
}

/// Writes the IP header of a packet from `source` to the guest.
fn emit_header(head: &mut [u8], source: IpAddr, protocol: IpProtocol, len: usize) {
    let repr = IpRepr::new(source.into(), guest_for(source).into(), protocol, len, 64);
    repr.emit(head, &ChecksumCapabilities::default());
}
