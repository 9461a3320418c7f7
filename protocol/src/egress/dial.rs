//! Between the egress process and the dialer: packets of one size each way, so that the dialer has
//! nothing to parse. An answer without a failure comes with one descriptor: a connected,
//! non-blocking socket.

use std::net::{IpAddr, Ipv6Addr};

/// Bytes of a [`DialRequest`].
pub const REQUEST_LEN: usize = 24;

/// Bytes of a [`DialAnswer`].
pub const ANSWER_LEN: usize = 8;

/// What is to be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dial {
    /// A TCP connection. The dialer holds the address to the floor.
    Tcp(IpAddr, u16),
    /// A UDP socket that is connected to this address, which is held to the floor.
    Udp(IpAddr, u16),
    /// A socket for ICMP echo requests to this address, which is held to the floor.
    Echo(IpAddr),
    /// A connection to one of the resolvers, by its position.
    Resolver(u8, ResolverTransport),
    /// A TCP connection to a port of the host's loopback address, if the settings list it.
    HostPort(u16),
}

/// How a resolver is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolverTransport {
    /// UDP.
    Udp,
    /// TCP, for answers that do not fit a datagram.
    Tcp,
}

/// A request to the dialer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DialRequest {
    /// Chosen by the egress process; the answer has it too.
    pub id: u32,
    /// What is to be dialled.
    pub dial: Dial,
}

/// Why nothing was dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum DialFailure {
    /// The address is below the floor, or the port or resolver is not listed.
    #[error("the address is not one that a sandbox may reach")]
    Forbidden = 1,
    /// The peer refused the connection.
    #[error("the peer refused the connection")]
    Refused = 2,
    /// There is no way to the address.
    #[error("there is no route to the address")]
    Unreachable = 3,
    /// The peer did not answer in time.
    #[error("the peer did not answer")]
    TimedOut = 4,
    /// Too many are being dialled, or the host has no room for another socket.
    #[error("the host has no room for another connection")]
    Busy = 5,
    /// The host does not provide such sockets.
    #[error("the host does not provide such sockets")]
    Unsupported = 6,
    /// It would have to go around the upstream proxy.
    #[error("the upstream proxy carries only TCP")]
    NotProxied = 7,
    /// The upstream proxy refused, or did not keep to its protocol.
    #[error("the upstream proxy refused the connection")]
    Proxy = 8,
    /// The upstream proxy of a tenant is below the floor.
    #[error("the upstream proxy has an address that a sandbox may not reach")]
    ProxyForbidden = 9,
    /// No connection to the upstream proxy can be made.
    #[error("the upstream proxy cannot be reached")]
    ProxyUnreachable = 10,
    /// The upstream proxy wants a user name and password, or others.
    #[error("the upstream proxy does not accept the user name and password")]
    ProxyLogin = 11,
}

impl DialFailure {
    /// Returns true if sandboxvm refused what the guest asked for, or its proxy did: a record says why.
    /// Otherwise the peer or the network failed, as without sandboxvm.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Forbidden) || self.is_about_proxy()
    }

    /// Returns true if the upstream proxy is the reason: no rule would help.
    #[must_use]
    pub fn is_about_proxy(self) -> bool {
        matches!(
            self,
            Self::NotProxied | Self::Proxy | Self::ProxyForbidden | Self::ProxyUnreachable | Self::ProxyLogin
        )
    }
}

/// The dialer's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DialAnswer {
    /// Of the request.
    pub id: u32,
    /// Whether a descriptor comes with it.
    pub result: Result<(), DialFailure>,
}

const TCP: u8 = 1;
const UDP: u8 = 2;
const ECHO: u8 = 3;
const RESOLVER_UDP: u8 = 4;
const RESOLVER_TCP: u8 = 5;
const HOST_PORT: u8 = 6;

impl DialRequest {
    /// Returns the packet: the ID, the kind, the resolver's position, the port, and the address, with
    /// an IPv4 address as `::ffff:a.b.c.d`. Numbers are little endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; REQUEST_LEN] {
        let none = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let (kind, place, port, address) = match self.dial {
            Dial::Tcp(address, port) => (TCP, 0, port, address),
            Dial::Udp(address, port) => (UDP, 0, port, address),
            Dial::Echo(address) => (ECHO, 0, 0, address),
            Dial::Resolver(place, ResolverTransport::Udp) => (RESOLVER_UDP, place, 0, none),
            Dial::Resolver(place, ResolverTransport::Tcp) => (RESOLVER_TCP, place, 0, none),
            Dial::HostPort(port) => (HOST_PORT, 0, port, none),
        };
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut packet = [0; REQUEST_LEN];
        packet[..4].copy_from_slice(&self.id.to_le_bytes());
        packet[4] = kind;
        packet[5] = place;
        packet[6..8].copy_from_slice(&port.to_le_bytes());
        packet[8..].copy_from_slice(&address.octets());
        packet
    }

    /// Reads a packet. Returns `None` for one of an unknown kind.
    #[must_use]
    pub fn from_bytes(packet: &[u8; REQUEST_LEN]) -> Option<Self> {
        let [i0, i1, i2, i3, kind, place, p0, p1, address @ ..] = *packet;
        let address: [u8; 16] = address;
        let (port, address) = (u16::from_le_bytes([p0, p1]), Ipv6Addr::from(address));
        let address = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
        let dial = match kind {
            TCP => Dial::Tcp(address, port),
            UDP => Dial::Udp(address, port),
            ECHO => Dial::Echo(address),
            RESOLVER_UDP => Dial::Resolver(place, ResolverTransport::Udp),
            RESOLVER_TCP => Dial::Resolver(place, ResolverTransport::Tcp),
            HOST_PORT => Dial::HostPort(port),
            _ => return None,
        };
        Some(Self { id: u32::from_le_bytes([i0, i1, i2, i3]), dial })
    }
}

impl DialAnswer {
    /// Returns the packet: the ID, and 0 or the failure.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ANSWER_LEN] {
        let [i0, i1, i2, i3] = self.id.to_le_bytes();
        [i0, i1, i2, i3, self.result.map_or_else(|failure| failure as u8, |()| 0), 0, 0, 0]
    }

    /// Reads a packet. Returns `None` for an unknown failure.
    #[must_use]
    pub fn from_bytes(packet: &[u8; ANSWER_LEN]) -> Option<Self> {
        let [i0, i1, i2, i3, result, ..] = *packet;
        let result = match result {
            0 => Ok(()),
            1 => Err(DialFailure::Forbidden),
            2 => Err(DialFailure::Refused),
            3 => Err(DialFailure::Unreachable),
            4 => Err(DialFailure::TimedOut),
            5 => Err(DialFailure::Busy),
            6 => Err(DialFailure::Unsupported),
            7 => Err(DialFailure::NotProxied),
            8 => Err(DialFailure::Proxy),
            9 => Err(DialFailure::ProxyForbidden),
            10 => Err(DialFailure::ProxyUnreachable),
            11 => Err(DialFailure::ProxyLogin),
            _ => return None,
        };
        Some(Self { id: u32::from_le_bytes([i0, i1, i2, i3]), result })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_were_written() {
        let v4 = IpAddr::from([198, 51, 100, 7]);
        let v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]);
        for dial in [
            Dial::Tcp(v4, 443),
            Dial::Tcp(v6, 1),
            Dial::Udp(v4, 65535),
            Dial::Echo(v6),
            Dial::Resolver(3, ResolverTransport::Udp),
            Dial::Resolver(9, ResolverTransport::Tcp),
            Dial::HostPort(5432),
        ] {
            let request = DialRequest { id: 0x0102_0304, dial };
            assert_eq!(DialRequest::from_bytes(&request.to_bytes()), Some(request));
        }
        assert_eq!(DialRequest::from_bytes(&[9; REQUEST_LEN]), None);
        for code in 0..=255_u8 {
            let packet = [1, 0, 0, 0, code, 0, 0, 0];
            if let Some(answer) = DialAnswer::from_bytes(&packet) {
                assert_eq!(answer.to_bytes(), packet);
            } else {
                assert!(code > 11);
            }
        }
    }
}
