//! What the host's kernel says about addresses, asked over netlink(7): the networks that the host is attached to, and
//! whether an address is the host's.

use ipnet::IpNet;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, netlink::SocketAddrNetlink, recv, send,
        socket_with,
    },
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

// Lengths and numbers of linux/netlink.h and linux/rtnetlink.h.
const HEADER: usize = 16;
const ADDRESS_MESSAGE: usize = 8;
const ROUTE_MESSAGE: usize = 12;
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `RTA_DST`, `IFA_ADDRESS`: the address that a message is about, and with a peer the peer's.
const ATTRIBUTE_ADDRESS: u16 = 1;
/// `IFA_LOCAL`: the host's address where the other is its peer's.
const ATTRIBUTE_LOCAL: u16 = 2;
/// Longest datagram of a dump: the kernel makes none above 32 KiB.
const LONGEST: usize = 32 * 1024;

/// The kernel did not say.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The socket.
    #[error("cannot ask the kernel for the host's addresses: {0}")]
    Socket(#[from] Errno),
    /// An answer is not as netlink(7) says.
    #[error("cannot read what the kernel says about the host's addresses")]
    Malformed,
}

/// Where the kernel sends packets for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To another host.
    Away,
    /// To this host, or to more than one host.
    Here,
    /// Nowhere.
    None,
}

/// A connection to the kernel's routing.
#[derive(Debug)]
pub struct Routing {
    socket: OwnedFd,
    sequence: u32,
}

impl Routing {
    /// Connects to it.
    ///
    /// # Errors
    /// When the host does not allow it.
    pub fn new() -> Result<Self, HostError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is protocol 0, which is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        // To the kernel: from then on, a message of another process does not arrive.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns the networks of all addresses of the host.
    ///
    /// # Errors
    /// Every [`HostError`].
    pub fn networks(&mut self) -> Result<Vec<IpNet>, HostError> {
        let mut networks = Vec::new();
        self.ask(libc::RTM_GETADDR, DUMP, &[0; ADDRESS_MESSAGE], |kind, body| {
            let header = body.first_chunk::<ADDRESS_MESSAGE>().ok_or(HostError::Malformed)?;
            if kind != libc::RTM_NEWADDR {
                return Ok(());
            }
            let family = header[0];
            for (attribute, value) in attributes(&body[ADDRESS_MESSAGE..]) {
                if matches!(attribute, ATTRIBUTE_ADDRESS | ATTRIBUTE_LOCAL) {
                    let address = address(family, value).ok_or(HostError::Malformed)?;
                    networks.push(IpNet::new(address, header[1]).map_err(|_| HostError::Malformed)?.trunc());
                }
            }
            Ok(())
        })?;
        Ok(networks)
    }

    /// Returns where packets for `to` go.
    ///
    /// # Errors
    /// Every [`HostError`]. The address must not be dialled then.
    pub fn way(&mut self, to: IpAddr) -> Result<Way, HostError> {
        let (family, bits, octets) = match to {
            IpAddr::V4(v4) => (libc::AF_INET, 32, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, 128, v6.octets().to_vec()),
        };
        let mut message = vec![0; ROUTE_MESSAGE];
        message[0] = u8::try_from(family).map_err(|_| HostError::Malformed)?;
        message[1] = bits;
        let length = u16::try_from(4 + octets.len()).map_err(|_| HostError::Malformed)?;
        message.extend(length.to_ne_bytes());
        message.extend(ATTRIBUTE_ADDRESS.to_ne_bytes());
        message.extend(octets);
        let mut way = None;
        let asked = self.ask(libc::RTM_GETROUTE, 0, &message, |kind, body| {
            let route = body.first_chunk::<ROUTE_MESSAGE>().ok_or(HostError::Malformed)?;
            if kind == libc::RTM_NEWROUTE {
                way = Some(match route[7] {
                    libc::RTN_UNICAST => Way::Away,
                    libc::RTN_BLACKHOLE | libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT => Way::None,
                    // Local, broadcast, anycast, multicast, and what this does not know.
                    _ => Way::Here,
                });
            }
            Ok(())
        });
        match (asked, way) {
            (Ok(()), Some(way)) => Ok(way),
            (Ok(()), None) => Err(HostError::Malformed),
            (Err(HostError::Socket(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL)), _) => {
                Ok(Way::None)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Sends a request, and passes each message of the answer to `each`.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + body.len()).map_err(|_| HostError::Malformed)?;
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(body);
        send(&self.socket, &request, SendFlags::empty())?;
        let mut buffer = vec![0; LONGEST];
        loop {
            // The kernel has answered when the request was sent, so this never waits.
            let (_, length) = recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC)?;
            let mut rest = buffer.get(..length).ok_or(HostError::Malformed)?;
            while let Some((message, after)) = split_message(rest) {
                rest = after;
                // What is left of an answer that was not read to its end.
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = message.body.first_chunk().map(|code| i32::from_ne_bytes(*code));
                        let code = code.ok_or(HostError::Malformed)?;
                        return Err(Errno::from_raw_os_error(code.wrapping_neg()).into());
                    }
                    kind => each(kind, message.body)?,
                }
                if flags & DUMP == 0 {
                    return Ok(());
                }
            }
            if !rest.is_empty() {
                return Err(HostError::Malformed);
            }
        }
    }
}

struct NetlinkMessage<'b> {
    kind: u16,
    sequence: u32,
    body: &'b [u8],
}

fn split_message(bytes: &[u8]) -> Option<(NetlinkMessage<'_>, &[u8])> {
    let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *bytes.first_chunk::<HEADER>()?;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let body = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    let kind = u16::from_ne_bytes([k0, k1]);
    Some((NetlinkMessage { kind, sequence: u32::from_ne_bytes([s0, s1, s2, s3]), body }, after))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), value))
    })
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_knows_its_own_addresses() {
        let mut routing = Routing::new().unwrap();
        for _ in 0..3 {
            assert!(routing.networks().unwrap().contains(&"127.0.0.0/8".parse().unwrap()));
            for here in ["127.0.0.1", "127.9.9.9", "255.255.255.255"] {
                assert_eq!(routing.way(here.parse().unwrap()).unwrap(), Way::Here, "{here}");
            }
            let away = routing.way("1.1.1.1".parse().unwrap()).unwrap();
            assert!(matches!(away, Way::Away | Way::None));
        }
    }

    #[test]
    fn messages_that_end_early_are_not_read() {
        let mut message = vec![0; HEADER + 4];
        message[..4].copy_from_slice(&20_u32.to_ne_bytes());
        assert!(split_message(&message).is_some());
        for length in [0_u32, 15, 21, u32::MAX] {
            message[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(split_message(&message).is_none(), "{length}");
        }
        assert_eq!(attributes(&[8, 0, 1, 0, 9, 9]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[6, 0, 1, 0, 7, 7]).collect::<Vec<_>>(), [(1, &[7, 7][..])]);
    }
}
