//! The card's configuration when the machine boots.

use super::{
    connections::Connections,
    netlink::{Answer, Netlink, Requests, attribute},
};
use rustix::{
    fs::{Mode, OFlags, open, unlink},
    io::{Errno, write},
    net::netdevice::name_to_index,
};
use sandboxvm_protocol::network::{
    GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, IPV4_PREFIX, IPV6_PREFIX, MacAddress,
};
use std::os::fd::{AsFd, BorrowedFd};

/// The kernel's name of the first card. No program renames it: the guest has no udev.
const NAME: &str = "eth0";

/// All groups may open sockets for echo requests (icmp(7)), so ping needs no privilege.
const PING_GROUPS: (&str, &[u8]) = ("/proc/sys/net/ipv4/ping_group_range", b"0 2147483647\n");

const IPV4: u8 = libc::AF_INET as u8;
const IPV6: u8 = libc::AF_INET6 as u8;

/// `IN6_ADDR_GEN_MODE_NONE` (linux/if_link.h): the kernel makes no link-local address.
const NO_LINK_LOCAL: u8 = 1;
/// `IFLA_AF_SPEC` and `IFLA_INET6_ADDR_GEN_MODE` (linux/if_link.h).
const AF_SPEC: u16 = 26;
const ADDRESS_MODE: u16 = 8;
/// `NDA_DST`, `NDA_LLADDR` and `NUD_PERMANENT` (linux/neighbour.h).
const NEIGHBOUR_ADDRESS: u16 = 1;
const NEIGHBOUR_HARDWARE: u16 = 2;
const PERMANENT: u16 = 0x80;

/// A network card.
#[derive(Debug)]
pub(crate) struct Card {
    index: u32,
    connections: Option<Connections>,
}

impl Card {
    /// Returns the machine's card, or `None` if it has none. `socket` is any socket.
    pub(crate) fn find(socket: BorrowedFd<'_>) -> Option<Self> {
        let index = name_to_index(socket, NAME).ok()?;
        let connections = Connections::open();
        let connections = connections.map_err(|errno| report("the end of inherited connections", errno)).ok();
        Some(Self { index, connections })
    }

    /// Gives the card its addresses and routes. What fails is reported on the console, and leaves
    /// the machine without that.
    pub(crate) fn configure(&self) {
        if let Err(errno) = self.configure_by_netlink() {
            report("its addresses", errno);
        }
        let (path, groups) = PING_GROUPS;
        if let Err(errno) = put(path, OFlags::WRONLY, groups) {
            report("echo requests of all users", errno);
        }
        if let Err(errno) = write_resolver() {
            report("its resolver in /etc/resolv.conf", errno);
        }
    }

    /// In a copy of a machine: ends the connections that only the other machine still has.
    pub(crate) fn end_connections(&self) {
        if let Some(Err(errno)) = self.connections.as_ref().map(Connections::end) {
            eprintln!("sandboxvm-agent: identity: inherited connections stay open: {errno}");
        }
    }

    fn configure_by_netlink(&self) -> Result<(), Errno> {
        let netlink = Netlink::route()?;
        let steps = self.steps();
        let mut requests = Requests::default();
        for (number, Step { kind, flags, body, .. }) in (0..).zip(&steps) {
            requests.add(number, *kind, libc::NLM_F_ACK | flags, body);
        }
        netlink.send(&requests)?;
        while netlink.receive(|answer| {
            if let Answer::Outcome(number, Err(errno)) = answer {
                let step = usize::try_from(number).ok().and_then(|number| steps.get(number));
                report(step.map_or("a part", |step| step.what), errno);
            }
        })? {}
        Ok(())
    }

    /// Returns the requests, in the order in which the kernel needs them. The driver has set the
    /// MTU.
    fn steps(&self) -> Vec<Step> {
        let link = |flags: i32| {
            // struct ifinfomsg: family, padding, type, index, flags, changed flags.
            let flags = u32::try_from(flags).unwrap_or(0);
            let words = [0, self.index, flags, flags].map(u32::to_ne_bytes);
            words.concat()
        };
        let mut no_link_local = link(0);
        let (mut of_ipv6, mut mode) = (Vec::new(), Vec::new());
        attribute(&mut mode, ADDRESS_MODE, &[NO_LINK_LOCAL]);
        attribute(&mut of_ipv6, IPV6.into(), &mode);
        attribute(&mut no_link_local, AF_SPEC, &of_ipv6);
        let (ours, gateway) =
            ([&GUEST_IPV4.octets()[..], &GUEST_IPV6.octets()], [&GATEWAY_IPV4.octets()[..], &GATEWAY_IPV6.octets()]);
        let set = |what, kind, body| Step { what, kind, flags: 0, body };
        let new = |what, kind, body| Step { what, kind, flags: libc::NLM_F_CREATE | libc::NLM_F_REPLACE, body };
        vec![
            set("a quiet IPv6", libc::RTM_NEWLINK, no_link_local),
            set("its start", libc::RTM_NEWLINK, link(libc::IFF_UP)),
            new("its IPv4 address", libc::RTM_NEWADDR, self.address(IPV4, IPV4_PREFIX, ours[0])),
            new("its IPv6 address", libc::RTM_NEWADDR, self.address(IPV6, IPV6_PREFIX, ours[1])),
            new("its IPv4 neighbour", libc::RTM_NEWNEIGH, self.neighbour(IPV4, gateway[0])),
            new("its IPv6 neighbour", libc::RTM_NEWNEIGH, self.neighbour(IPV6, gateway[1])),
            new("its IPv4 route", libc::RTM_NEWROUTE, self.default_route(IPV4, gateway[0])),
            new("its IPv6 route", libc::RTM_NEWROUTE, self.default_route(IPV6, gateway[1])),
        ]
    }

    fn address(&self, family: u8, prefix: u8, address: &[u8]) -> Vec<u8> {
        // struct ifaddrmsg: family, prefix length, flags, scope (universe), index.
        let flags = u8::try_from(libc::IFA_F_PERMANENT | libc::IFA_F_NODAD).unwrap_or(0);
        let mut body = vec![family, prefix, flags, libc::RT_SCOPE_UNIVERSE];
        body.extend(self.index.to_ne_bytes());
        attribute(&mut body, libc::IFA_LOCAL, address);
        attribute(&mut body, libc::IFA_ADDRESS, address);
        body
    }

    fn neighbour(&self, family: u8, address: &[u8]) -> Vec<u8> {
        // struct ndmsg: family, padding, index, state, flags, type.
        let mut body = vec![family, 0, 0, 0];
        body.extend(self.index.to_ne_bytes());
        body.extend(PERMANENT.to_ne_bytes());
        body.extend([0, 0]);
        attribute(&mut body, NEIGHBOUR_ADDRESS, address);
        attribute(&mut body, NEIGHBOUR_HARDWARE, &MacAddress::GATEWAY.bytes());
        body
    }

    fn default_route(&self, family: u8, gateway: &[u8]) -> Vec<u8> {
        // struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
        let mut body = vec![
            family,
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        attribute(&mut body, libc::RTA_GATEWAY, gateway);
        attribute(&mut body, libc::RTA_OIF, &self.index.to_ne_bytes());
        body
    }
}

fn report(what: &str, errno: Errno) {
    eprintln!("sandboxvm-agent: boot: the network card lacks {what}: {errno}");
}

/// A request, and what the machine lacks if it fails.
struct Step {
    what: &'static str,
    kind: u16,
    flags: i32,
    body: Vec<u8>,
}

/// Returns the content of `/etc/resolv.conf` in a machine with a card.
pub(crate) fn resolver() -> String {
    format!("nameserver {GATEWAY_IPV4}\n")
}

/// Replaces `/etc/resolv.conf`, which may be a link in an image.
fn write_resolver() -> Result<(), Errno> {
    const PATH: &str = "/etc/resolv.conf";
    match unlink(PATH) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    put(PATH, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, resolver().as_bytes())
}

fn put(path: &str, flags: OFlags, content: &[u8]) -> Result<(), Errno> {
    let file = open(path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::from_raw_mode(0o644))?;
    write(file.as_fd(), content).map(drop)
}
