//! The network that a guest sees. It is the same in every guest: one card, one neighbour, the gateway,
//! which is also the resolver. The host knows these addresses only between a VMM and its egress
//! process.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

/// IPv4 address of the guest. Its network is of the block for benchmarks (RFC 2544), which no host
/// routes.
pub const GUEST_IPV4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// IPv4 address of the gateway.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Prefix length of the IPv4 network between the two.
pub const IPV4_PREFIX: u8 = 30;
/// IPv6 address of the guest.
pub const GUEST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x5b, 0, 0, 0, 0, 0, 2);
/// IPv6 address of the gateway.
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x5b, 0, 0, 0, 0, 0, 1);
/// Prefix length of the IPv6 network between the two.
pub const IPV6_PREFIX: u8 = 64;
/// Name of the gateway in `/etc/hosts` of the guest: services of the host are there.
pub const GATEWAY_NAME: &str = "host.internal";

/// The hardware address of a guest's card, or of the gateway. It belongs to one device: multicast
/// addresses and zero are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[u8; 6]", into = "[u8; 6]")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// That of every guest.
    pub const GUEST: Self = Self([0x02, 0x73, 0x62, 0x78, 0, 0x02]);
    /// That of every gateway.
    pub const GATEWAY: Self = Self([0x02, 0x73, 0x62, 0x78, 0, 0x01]);

    /// Returns the address as on the wire.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Maximum size of an IP packet in bytes: 1280, the minimum of IPv6, to 65520.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Mtu(u16);

impl Mtu {
    /// Minimum in bytes.
    pub const MIN: u16 = 1280;
    /// Maximum in bytes. The largest multiple of 16 that the length field of IPv4 holds.
    pub const MAX: u16 = 65520;
    /// That of every guest. Large packets make up for segmentation offload, which the card has not.
    pub const GUEST: Self = Self(Self::MAX);

    /// Returns the size in bytes.
    #[must_use]
    pub fn bytes(self) -> u16 {
        self.0
    }
}

/// Why a value is not valid for a card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not the address of one device.
    #[error("invalid hardware address {0:02x?}: expected one of a single device")]
    Mac([u8; 6]),
    /// MTU out of range.
    #[error("invalid MTU of {0} bytes: must be between 1280 and 65520")]
    Mtu(u16),
}

impl TryFrom<[u8; 6]> for MacAddress {
    type Error = NetworkError;

    fn try_from(bytes: [u8; 6]) -> Result<Self, NetworkError> {
        if bytes[0] & 1 == 0 && bytes != [0; 6] { Ok(Self(bytes)) } else { Err(NetworkError::Mac(bytes)) }
    }
}

impl From<MacAddress> for [u8; 6] {
    fn from(address: MacAddress) -> Self {
        address.0
    }
}

impl TryFrom<u16> for Mtu {
    type Error = NetworkError;

    fn try_from(bytes: u16) -> Result<Self, NetworkError> {
        if (Self::MIN..=Self::MAX).contains(&bytes) { Ok(Self(bytes)) } else { Err(NetworkError::Mtu(bytes)) }
    }
}

impl From<Mtu> for u16 {
    fn from(mtu: Mtu) -> Self {
        mtu.0
    }
}
