//! What a frame of the guest is. Nothing is trusted: lengths are checked before anything is read, and what is not one of
//! the few things that a gateway answers to is [`Inbound::Other`], which is dropped.

use super::{
    addresses::{GATEWAY_MAC, is_guest},
    outlet::VIRTIO_HEADER,
};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv6Message, Icmpv6Packet, IpProtocol,
    Ipv4Packet, Ipv6Packet, NdiscNeighborFlags, UdpPacket,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the guest sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound<'f> {
    /// The question for the hardware address of this one.
    Arp {
        /// Who asks.
        source: Ipv4Addr,
        /// Which address.
        target: Ipv4Addr,
    },
    /// The same, of IPv6.
    Neighbor {
        /// Who asks.
        source: Ipv6Addr,
        /// Which address.
        target: Ipv6Addr,
    },
    /// A packet that goes somewhere.
    Packet(Packet<'f>),
    /// Nothing that is answered.
    Other,
}

/// An IP packet that is whole, from the guest's address to a unicast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'f> {
    /// All of it, without padding.
    pub bytes: &'f [u8],
    /// Length of the IP header.
    pub header: usize,
    /// Where it goes, as the guest wrote it.
    pub destination: IpAddr,
    /// What is in it.
    pub content: Content,
}

/// What is in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment.
    Tcp {
        /// The guest's port.
        from: u16,
        /// The port that it goes to.
        to: u16,
        /// True if it begins a connection: SYN without ACK and RST.
        begins: bool,
        /// True if it ends one by a reset.
        resets: bool,
    },
    /// A UDP datagram.
    Udp {
        /// The guest's port.
        from: u16,
        /// The port that it goes to.
        to: u16,
        /// Length of the datagram's payload, which begins behind its header of 8 bytes.
        len: usize,
    },
    /// An ICMP echo request, of either version.
    Echo {
        /// Which program's.
        identifier: u16,
        /// Which of them.
        sequence: u16,
    },
}

impl<'f> Packet<'f> {
    /// Returns what follows the IP header.
    #[must_use]
    pub fn payload(&self) -> &'f [u8] {
        &self.bytes[self.header..]
    }

    /// Returns the data of a datagram or an echo request, behind its header of 8 bytes.
    #[must_use]
    pub fn data(&self) -> &'f [u8] {
        let end = match self.content {
            Content::Udp { len, .. } => 8 + len,
            Content::Tcp { .. } | Content::Echo { .. } => self.payload().len(),
        };
        self.payload().get(8..end).unwrap_or_default()
    }
}

/// Reads a frame with the header of the card before it.
#[must_use]
pub fn read(frame: &[u8]) -> Inbound<'_> {
    frame_in(frame).unwrap_or(Inbound::Other)
}

/// Reads an IP packet that was part of a frame before.
#[must_use]
pub fn packet_of(bytes: &[u8]) -> Inbound<'_> {
    let inbound = match bytes.first().map(|byte| byte >> 4) {
        Some(4) => v4_in(bytes),
        Some(6) => v6_in(bytes, true),
        _ => None,
    };
    inbound.unwrap_or(Inbound::Other)
}

fn frame_in(frame: &[u8]) -> Option<Inbound<'_>> {
    let (header, frame) = frame.split_at_checked(VIRTIO_HEADER)?;
    // Segmentation offload was not offered (`gso_type`).
    if header[1] != 0 {
        return None;
    }
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let is_for_gateway = frame.dst_addr() == GATEWAY_MAC;
    match frame.ethertype() {
        EthernetProtocol::Arp if is_for_gateway || frame.dst_addr().is_broadcast() => arp_in(frame.payload()),
        EthernetProtocol::Ipv4 if is_for_gateway => v4_in(frame.payload()),
        EthernetProtocol::Ipv6 => v6_in(frame.payload(), is_for_gateway),
        _ => None,
    }
}

fn arp_in(payload: &[u8]) -> Option<Inbound<'_>> {
    let ArpRepr::EthernetIpv4 { operation, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
    else {
        return None;
    };
    (operation == ArpOperation::Request)
        .then_some(Inbound::Arp { source: source_protocol_addr, target: target_protocol_addr })
}

fn v4_in(payload: &[u8]) -> Option<Inbound<'_>> {
    let packet = Ipv4Packet::new_checked(payload).ok()?;
    // Fragments are dropped: the link takes packets of 65,520 bytes, so only a datagram of more has any.
    if packet.version() != 4 || packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let (header, total) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
    if header < 20 {
        return None;
    }
    packet_in(payload.get(..total)?, header, packet.src_addr().into(), packet.dst_addr().into(), packet.next_header())
}

fn v6_in(payload: &[u8], is_for_gateway: bool) -> Option<Inbound<'_>> {
    let packet = Ipv6Packet::new_checked(payload).ok()?;
    if packet.version() != 6 {
        return None;
    }
    let bytes = payload.get(..packet.total_len())?;
    if packet.next_header() == IpProtocol::Icmpv6
        && let Some(question) = neighbor_in(&bytes[40..], packet.src_addr())
    {
        return (packet.hop_limit() == 255).then_some(question);
    }
    if !is_for_gateway {
        return None;
    }
    // Extension headers are none of the protocols here, so packets with them are dropped.
    packet_in(bytes, 40, packet.src_addr().into(), packet.dst_addr().into(), packet.next_header())
}

fn neighbor_in(payload: &[u8], source: Ipv6Addr) -> Option<Inbound<'static>> {
    let packet = Icmpv6Packet::new_checked(payload).ok()?;
    // `new_checked` looks at the type before the target is read.
    (packet.msg_type() == Icmpv6Message::NeighborSolicit && payload.len() >= 24)
        .then(|| Inbound::Neighbor { source, target: packet.target_addr() })
}

fn packet_in(
    bytes: &[u8],
    header: usize,
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
) -> Option<Inbound<'_>> {
    let payload = bytes.get(header..)?;
    if !is_guest(source) || !is_unicast(destination) || is_guest(destination) {
        return None;
    }
    let content = match protocol {
        IpProtocol::Tcp => tcp_in(payload)?,
        IpProtocol::Udp => {
            let packet = UdpPacket::new_checked(payload).ok()?;
            let len = usize::from(packet.len()).checked_sub(8)?;
            Content::Udp { from: packet.src_port(), to: packet.dst_port(), len }
        }
        IpProtocol::Icmp if destination.is_ipv4() => echo_in(payload, 8)?,
        IpProtocol::Icmpv6 if destination.is_ipv6() => echo_in(payload, 128)?,
        _ => return None,
    };
    Some(Inbound::Packet(Packet { bytes, header, destination, content }))
}

fn tcp_in(payload: &[u8]) -> Option<Content> {
    let packet = smoltcp::wire::TcpPacket::new_checked(payload).ok()?;
    let (from, to) = (packet.src_port(), packet.dst_port());
    let begins = packet.syn() && !packet.ack() && !packet.rst() && !packet.fin();
    (from != 0 && to != 0).then_some(Content::Tcp { from, to, begins, resets: packet.rst() })
}

fn echo_in(payload: &[u8], request: u8) -> Option<Content> {
    let [kind, 0, _, _, i0, i1, s0, s1, ..] = *payload else { return None };
    let (identifier, sequence) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1]));
    (kind == request).then_some(Content::Echo { identifier, sequence })
}

/// Returns true for an address of one host.
fn is_unicast(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_multicast() || address.is_unspecified() || is_broadcast)
}

/// The flags of an answer to a question for a neighbor.
pub(super) const NEIGHBOR_FLAGS: NdiscNeighborFlags =
    NdiscNeighborFlags::SOLICITED.union(NdiscNeighborFlags::OVERRIDE).union(NdiscNeighborFlags::ROUTER);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_frame_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0_usize..4) {
            let kind = [[0x08, 0x00], [0x08, 0x06], [0x86, 0xdd], [0x12, 0x34]][kind];
            let frame = [&[0; 12][..], &GATEWAY_MAC.0, &[2; 6], &kind, &bytes].concat();
            let _ = read(&frame);
            let _ = read(&bytes);
        }

        #[test]
        fn any_content_is_read_without_a_panic(
            payload in prop::collection::vec(any::<u8>(), 0..80),
            protocol in prop::sample::select(vec![1_u8, 6, 17, 58]),
            options in 0_u8..11,
        ) {
            let header = 20 + usize::from(options) * 4;
            let total = u16::try_from(header + payload.len()).unwrap().to_be_bytes();
            let mut v4 = vec![0x45 + options, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol, 0, 0];
            v4.extend([198, 18, 0, 2, 198, 51, 100, 1]);
            v4.resize(header, 1);
            v4.extend(&payload);
            let frame = [&[0; 12][..], &GATEWAY_MAC.0, &[2; 6], &[8, 0], &v4].concat();
            if let Inbound::Packet(packet) = read(&frame) {
                prop_assert_eq!(packet.payload(), &payload[..]);
                prop_assert!(packet.data().len() <= payload.len());
            }
        }
    }
}
