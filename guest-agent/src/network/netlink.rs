//! Messages of netlink(7): requests in one packet, and the kernel's answers. The kernel answers
//! within send(2), so nothing here waits.

use rustix::{
    io::Errno,
    net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with},
};
use std::os::fd::OwnedFd;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Size of the buffer for answers. The kernel splits longer ones.
const ANSWERS: usize = 16 * 1024;

const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;

/// A socket to a part of the kernel.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The outcome of the request with this number.
    Outcome(u32, Result<(), Errno>),
    /// The end of a dump.
    Done,
    /// An element of a dump.
    Element(&'a [u8]),
}

impl Netlink {
    /// Opens a socket to the routing tables.
    pub(super) fn route() -> Result<Self, Errno> {
        // The protocol with the number zero.
        Self::open(None)
    }

    /// Opens a socket to the sockets of this network namespace (sock_diag(7)).
    pub(super) fn sockets() -> Result<Self, Errno> {
        Self::open(Some(netlink::SOCK_DIAG))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, Errno> {
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).map(Self)
    }

    /// Sends requests.
    pub(super) fn send(&self, requests: &Requests) -> Result<(), Errno> {
        send(&self.0, &requests.bytes, SendFlags::empty()).map(drop)
    }

    /// Passes the answers of the next packet to `take`. Returns false if there is none.
    pub(super) fn receive(&self, mut take: impl FnMut(Answer<'_>)) -> Result<bool, Errno> {
        let mut buffer = vec![0; ANSWERS];
        let length = match recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => length,
            Err(Errno::AGAIN) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        let mut rest = &buffer[..length];
        while let Some((answer, after)) = next(rest) {
            rest = after;
            if let Some(answer) = answer {
                take(answer);
            }
        }
        Ok(true)
    }
}

/// Splits the first message off. The message is none if it is of no known kind.
fn next(bytes: &[u8]) -> Option<(Option<Answer<'_>>, &[u8])> {
    let header = bytes.get(..HEADER)?;
    let [l0, l1, l2, l3, k0, k1, _, _, n0, n1, n2, n3, ..] = *header else { return None };
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let body = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    let answer = match u16::from_ne_bytes([k0, k1]) {
        // An error comes with the request. The number is negative, and zero means success.
        ERROR => body.first_chunk().map(|code| {
            let outcome = match i32::from_ne_bytes(*code) {
                0 => Ok(()),
                code => Err(Errno::from_raw_os_error(code.wrapping_neg())),
            };
            Answer::Outcome(u32::from_ne_bytes([n0, n1, n2, n3]), outcome)
        }),
        DONE => Some(Answer::Done),
        _ => Some(Answer::Element(body)),
    };
    Some((answer, rest))
}

/// Requests that are sent in one packet.
#[derive(Debug, Default)]
pub(super) struct Requests {
    bytes: Vec<u8>,
}

impl Requests {
    /// Adds a request. Its outcome has the number `number`.
    pub(super) fn add(&mut self, number: u32, kind: u16, flags: i32, body: &[u8]) {
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or(0);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(number.to_ne_bytes());
        // The sender's address, which the kernel sets.
        self.bytes.extend([0; 4]);
        self.bytes.extend(body);
        pad(&mut self.bytes);
    }

    /// Returns true if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Adds an attribute (rtnetlink(7)) to the body of a request.
pub(super) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    pad(body);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_attributes_are_aligned() {
        let mut body = vec![1, 2, 3, 4];
        attribute(&mut body, 5, &[9; 6]);
        assert_eq!(body, [&[1, 2, 3, 4, 10, 0, 5, 0][..], &[9; 6], &[0; 2]].concat());
        let mut requests = Requests::default();
        assert!(requests.is_empty());
        requests.add(7, 20, libc::NLM_F_ACK, &[1; 5]);
        requests.add(8, 21, 0, &[]);
        assert_eq!(requests.bytes.len(), 24 + 16);
        assert_eq!(requests.bytes[..12], [21, 0, 0, 0, 20, 0, 5, 0, 7, 0, 0, 0]);
        assert_eq!(requests.bytes[24..36], [16, 0, 0, 0, 21, 0, 1, 0, 8, 0, 0, 0]);
    }

    #[test]
    fn answers_are_split_and_cut_ones_end_them() {
        let message = |kind: u16, number: u32, body: &[u8]| {
            let mut requests = Requests::default();
            requests.add(number, kind, 0, body);
            requests.bytes
        };
        let denied = message(ERROR, 3, &(-libc::EPERM).to_ne_bytes());
        let bytes = [message(ERROR, 2, &[0; 4]), denied, message(30, 0, &[5; 3]), message(DONE, 0, &[0; 4])].concat();
        let mut answers = Vec::new();
        let mut rest = &bytes[..];
        while let Some((answer, after)) = next(rest) {
            answers.extend(answer);
            rest = after;
        }
        let expected =
            [Answer::Outcome(2, Ok(())), Answer::Outcome(3, Err(Errno::PERM)), Answer::Element(&[5; 3]), Answer::Done];
        assert_eq!(answers, expected);
        for cut in 0..bytes.len() {
            let mut rest = &bytes[..cut];
            while let Some((_, after)) = next(rest) {
                assert!(after.len() < rest.len());
                rest = after;
            }
        }
        // A length that would not move on, or lies beyond the packet.
        for length in [0_u32, 15, 17, u32::MAX] {
            assert_eq!(next(&[&length.to_ne_bytes()[..], &[0; 12]].concat()), None, "{length}");
        }
    }

    #[test]
    fn the_kernel_answers_every_request() {
        let Ok(netlink) = Netlink::sockets() else { return };
        let mut requests = Requests::default();
        // Of no kind that exists.
        requests.add(41, 0x7f, libc::NLM_F_ACK, &[]);
        requests.add(42, 0x7f, libc::NLM_F_ACK, &[]);
        netlink.send(&requests).unwrap();
        let mut failed = Vec::new();
        while netlink
            .receive(|answer| match answer {
                Answer::Outcome(number, Err(_)) => failed.push(number),
                other => panic!("{other:?}"),
            })
            .unwrap()
        {}
        assert_eq!(failed, [41, 42]);
    }
}
