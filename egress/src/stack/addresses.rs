//! The addresses of the link between a guest and its gateway. They are the same in every sandbox: each has a stack of its
//! own, so a copy keeps the addresses of the machine that it is a copy of.

use smoltcp::wire::EthernetAddress;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The guest's hardware address.
pub const GUEST_MAC: EthernetAddress = EthernetAddress([0x02, 0x73, 0x62, 0x78, 0x00, 0x02]);

/// The gateway's hardware address.
pub const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x02, 0x73, 0x62, 0x78, 0x00, 0x01]);

/// The guest's IPv4 address, in a network of 30 bits.
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// The gateway's IPv4 address, which is the resolver's too.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// The guest's IPv6 address, in a network of 64 bits.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x5b, 0, 0, 0, 0, 0, 2);

/// The gateway's IPv6 address.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x5b, 0, 0, 0, 0, 0, 1);

/// Largest IP packet on the link in bytes.
pub const MTU: usize = 65_520;

/// Returns true for the gateway's addresses.
#[must_use]
pub fn is_gateway(address: IpAddr) -> bool {
    address == IpAddr::V4(GATEWAY_V4) || address == IpAddr::V6(GATEWAY_V6)
}

/// Returns true for the guest's addresses.
#[must_use]
pub fn is_guest(address: IpAddr) -> bool {
    address == IpAddr::V4(GUEST_V4) || address == IpAddr::V6(GUEST_V6)
}

/// Returns the guest's address of the same version as `peer`.
#[must_use]
pub fn guest_for(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => IpAddr::V4(GUEST_V4),
        IpAddr::V6(_) => IpAddr::V6(GUEST_V6),
    }
}
