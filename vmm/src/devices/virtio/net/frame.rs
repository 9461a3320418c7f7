//! What a frame must be to be carried, in either direction: the device's header, `struct virtio_net_hdr_v1` (virtio 1.2,
//! 5.1.6), and the length and the type of the Ethernet frame behind it.

use sandboxvm_protocol::network::Mtu;
use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE};

/// Bytes of the device's header.
pub(super) const HEADER: usize = 12;
/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;

/// Types of Ethernet frames that a VLAN tag makes longer (802.1Q, 802.1ad).
const VLAN: [u16; 2] = [0x8100, 0x88a8];

/// The device's header and the Ethernet header behind it, as a peer or a guest wrote them.
pub(super) type Start = [u8; HEADER + ETHERNET];

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the guest to the socket.
    Out,
    /// From the socket to the guest.
    In,
}

/// Returns the length of the longest frame, the device's header included.
pub(super) fn longest(mtu: Mtu) -> usize {
    HEADER + ETHERNET + usize::from(mtu.bytes())
}

/// Checks a frame of `length` bytes, both headers included, that begins with `start`. Returns the header with which it is
/// carried, or `None` if it is dropped.
pub(super) fn accept(start: &Start, length: usize, mtu: Mtu, way: Way) -> Option<[u8; HEADER]> {
    let [flags, segmentation, _, _, _, _, s0, s1, o0, o1, ..] = *start;
    let kind = u16::from_be_bytes([start[HEADER + ETHERNET - 2], start[HEADER + ETHERNET - 1]]);
    if !(start.len()..=longest(mtu)).contains(&length)
        || u32::from(segmentation) != VIRTIO_NET_HDR_GSO_NONE
        || VLAN.contains(&kind)
    {
        return None;
    }
    let flag = |flag: u32| u8::try_from(u32::from(flags) & flag).unwrap_or(0);
    let mut header = [0; HEADER];
    match way {
        Way::Out => {
            header[0] = flag(VIRTIO_NET_HDR_F_NEEDS_CSUM);
            if header[0] != 0 {
                header[6..10].copy_from_slice(&[s0, s1, o0, o1]);
            }
        }
        Way::In => header[0] = flag(VIRTIO_NET_HDR_F_DATA_VALID),
    }
    Some(header)
}

/// Notes in the header of a received frame that it is spread over so many chains.
pub(super) fn set_chains(header: &mut [u8; HEADER], chains: u16) {
    header[10..].copy_from_slice(&chains.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start(flags: u8, segmentation: u8, kind: u16) -> Start {
        let mut start = [0xaa; HEADER + ETHERNET];
        start[0] = flags;
        start[1] = segmentation;
        start[HEADER + 12..].copy_from_slice(&kind.to_be_bytes());
        start
    }

    #[test]
    fn length_is_between_an_ethernet_header_and_the_mtu() {
        let mtu = Mtu::try_from(1500).unwrap();
        let accepted = |length| accept(&start(0, 0, 0x0800), length, mtu, Way::Out).is_some();
        assert!(accepted(HEADER + 14) && accepted(HEADER + 1514));
        assert!(!accepted(0) && !accepted(HEADER + 13) && !accepted(HEADER + 1515) && !accepted(usize::MAX));
    }

    #[test]
    fn tags_and_segmentation_are_refused() {
        for way in [Way::Out, Way::In] {
            let accepted = |start: Start| accept(&start, 60, Mtu::GUEST, way).is_some();
            assert!(accepted(start(0, 0, 0x0800)) && accepted(start(0, 0, 0x86dd)));
            assert!(!accepted(start(0, 0, 0x8100)) && !accepted(start(0, 0, 0x88a8)));
            assert!(!accepted(start(0, 1, 0x0800)) && !accepted(start(0, 0x80, 0x0800)));
        }
    }

    #[test]
    fn only_known_parts_of_a_header_are_carried() {
        let out = |flags| accept(&start(flags, 0, 0x0800), 60, Mtu::GUEST, Way::Out).unwrap();
        assert_eq!(out(0xff), [1, 0, 0, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0]);
        assert_eq!(out(0xfe), [0; HEADER]);
        let mut back = accept(&start(0xff, 0, 0x0800), 60, Mtu::GUEST, Way::In).unwrap();
        set_chains(&mut back, 0x0102);
        assert_eq!(back, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    }

    proptest! {
        #[test]
        fn no_header_asks_for_segmentation(start: [u8; HEADER + ETHERNET], length in 0_usize..70_000) {
            for way in [Way::Out, Way::In] {
                if let Some(header) = accept(&start, length, Mtu::GUEST, way) {
                    prop_assert_eq!(&header[1..6], [0; 5]);
                }
            }
        }
    }
}
