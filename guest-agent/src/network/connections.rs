//! TCP connections of a copy. Restored, forked or put back, a machine has the sockets of the machine
//! that it is a copy of, and no peer knows the copy. A program that writes to one learns that from
//! the gateway, but one that only reads would wait without limit. So the agent ends them, and
//! programs see a connection that was aborted. UDP has no connections to end, and connections
//! within the machine are whole in the copy.
//!
//! Network namespaces that programs made have no card, so their sockets need no end.

use super::netlink::{Answer, Netlink, Requests};
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `TCPDIAG_GETSOCK` (linux/inet_diag.h): lists the TCP sockets of both families.
const LIST: u16 = 18;
/// `SOCK_DESTROY` (linux/sock_diag.h).
const DESTROY: u16 = 21;

/// States of connections, by their number in the kernel (net/tcp_states.h): all but TIME_WAIT (6),
/// CLOSE (7) and LISTEN (10).
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Length of `struct inet_diag_sockid`: ports, two addresses, interface, cookie.
const SOCKET_ID: usize = 48;
/// Length of `struct inet_diag_req`, which lists.
const LIST_BODY: usize = 4 + SOCKET_ID + 8;

/// Maximum number of connections that are ended. A program that opened more has to find out that
/// the others are gone when it writes to them.
const MAX: usize = 10_000;

/// Ends connections.
#[derive(Debug)]
pub(super) struct Connections(Netlink);

impl Connections {
    /// Opens what is needed, so that a copy does not have to.
    pub(super) fn open() -> Result<Self, Errno> {
        Netlink::sockets().map(Self)
    }

    /// Ends all connections whose peer is not in this machine.
    pub(super) fn end(&self) -> Result<(), Errno> {
        let mut list = Requests::default();
        list.add(0, LIST, libc::NLM_F_DUMP, &list_body());
        self.0.send(&list)?;
        let (mut is_done, mut failed, mut ended) = (false, None, 0);
        let mut requests = Requests::default();
        while !is_done {
            let is_more = self.0.receive(|answer| match answer {
                Answer::Done => is_done = true,
                Answer::Outcome(_, outcome) => {
                    failed = outcome.err();
                    is_done = true;
                }
                Answer::Element(element) => {
                    if let Some(socket) = Socket::read(element)
                        && socket.is_remote()
                        && ended < MAX
                    {
                        // Only failures are answered, and of these there is one kind: the socket is gone.
                        requests.add(1, DESTROY, 0, &socket.destroy_body());
                        ended += 1;
                    }
                }
            })?;
            is_done |= !is_more;
        }
        if !requests.is_empty() {
            self.0.send(&requests)?;
            while self.0.receive(|_| ())? {}
        }
        failed.map_or(Ok(()), Err)
    }
}

/// `struct inet_diag_req`: family, prefix lengths, extensions, socket, states, database.
fn list_body() -> [u8; LIST_BODY] {
    let mut body = [0; LIST_BODY];
    body[4 + SOCKET_ID..8 + SOCKET_ID].copy_from_slice(&CONNECTED.to_ne_bytes());
    body
}

/// A socket, as a list has it.
#[derive(Debug)]
struct Socket<'a> {
    family: u8,
    id: &'a [u8; SOCKET_ID],
}

impl<'a> Socket<'a> {
    /// Reads the beginning of a `struct inet_diag_msg`: family, state, timer, retransmits, socket.
    fn read(element: &'a [u8]) -> Option<Self> {
        let (&[family, ..], rest) = element.split_first_chunk::<4>()?;
        Some(Self { family, id: rest.first_chunk()? })
    }

    /// Returns the address at `offset` in the socket's identification.
    fn address(&self, offset: usize) -> IpAddr {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.id[offset..offset + 16]);
        let [a, b, c, d, ..] = bytes;
        if i32::from(self.family) == libc::AF_INET {
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(bytes).to_canonical()
        }
    }

    /// Returns true unless both ends are in this machine.
    fn is_remote(&self) -> bool {
        let (own, peer) = (self.address(4), self.address(20));
        !peer.is_loopback() && own != peer
    }

    /// Returns a `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, socket.
    fn destroy_body(&self) -> Vec<u8> {
        let mut body = vec![self.family, libc::IPPROTO_TCP as u8, 0, 0];
        body.extend(u32::MAX.to_ne_bytes());
        body.extend(self.id);
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn element(family: i32, own: &[u8], peer: &[u8]) -> Vec<u8> {
        let mut element = vec![0; 4 + SOCKET_ID + 20];
        element[0] = family as u8;
        element[8..8 + own.len()].copy_from_slice(own);
        element[24..24 + peer.len()].copy_from_slice(peer);
        element
    }

    #[test]
    fn connections_within_the_machine_are_not_remote() {
        let remote = |family, own: &[u8], peer: &[u8]| Socket::read(&element(family, own, peer)).unwrap().is_remote();
        let mapped = |address: [u8; 4]| Ipv4Addr::from(address).to_ipv6_mapped().octets();
        let (guest, other) = ([198, 18, 0, 2], [192, 0, 2, 1]);
        assert!(remote(libc::AF_INET, &guest, &other));
        assert!(remote(libc::AF_INET6, &mapped(guest), &mapped(other)));
        assert!(remote(libc::AF_INET6, &[0xfd; 16], &[0x20; 16]));
        assert!(!remote(libc::AF_INET, &[127, 0, 0, 1], &[127, 0, 0, 1]));
        assert!(!remote(libc::AF_INET, &guest, &[127, 0, 0, 1]));
        assert!(!remote(libc::AF_INET, &guest, &guest));
        assert!(!remote(libc::AF_INET6, &mapped([127, 0, 0, 1]), &mapped([127, 0, 0, 9])));
        assert!(!remote(libc::AF_INET6, &Ipv6Addr::LOCALHOST.octets(), &Ipv6Addr::LOCALHOST.octets()));
        assert!(Socket::read(&[0; 4 + SOCKET_ID - 1]).is_none());
    }

    /// With the kernel of this machine, as far as it has what is needed: the connection is within it.
    #[test]
    fn a_connection_within_the_machine_stays() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        // Only lists: other connections of this machine are not the test's.
        let Ok(netlink) = Netlink::sockets() else { return };
        let mut list = Requests::default();
        list.add(0, LIST, libc::NLM_F_DUMP, &list_body());
        netlink.send(&list).unwrap();
        let port = client.local_addr().unwrap().port().to_be_bytes();
        let (mut found, mut failed) = (false, false);
        while netlink
            .receive(|answer| match answer {
                Answer::Element(element) => {
                    let socket = Socket::read(element).unwrap();
                    if socket.id[..2] == port {
                        assert!(!socket.is_remote());
                        found = true;
                    }
                }
                Answer::Outcome(..) => failed = true,
                Answer::Done => {}
            })
            .unwrap()
        {}
        assert!(found || failed);
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}
