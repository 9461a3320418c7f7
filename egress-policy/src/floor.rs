//! The hard floor: addresses that no policy of a tenant opens. It is about addresses alone, whatever their disguise, and
//! is checked last, by the process that opens the connection.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is below the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Below {
    /// `0.0.0.0/8` and `::`, which connect to the host itself.
    #[error("it is the unspecified address")]
    Unspecified,
    /// `127.0.0.0/8` and `::1`.
    #[error("it is a loopback address")]
    Loopback,
    /// `169.254.0.0/16`, with most metadata services of clouds, and `fe80::/10`.
    #[error("it is a link-local address")]
    LinkLocal,
    /// A metadata service outside of the link-local range.
    #[error("it is the address of a metadata service")]
    Metadata,
    /// RFC 1918, RFC 4193, site-local, and the shared range of carriers (RFC 6598).
    #[error("it is in a private range")]
    Private,
    /// All multicast.
    #[error("it is a multicast address")]
    Multicast,
    /// `255.255.255.255` and the reserved class E.
    #[error("it is a broadcast or reserved address")]
    Reserved,
    /// Documentation, benchmarking, and protocol assignments: nothing of the public internet.
    #[error("it is in a range for special purposes")]
    Special,
    /// An address of this host, or of a network that it is attached to.
    #[error("it is an address of the host or of its networks")]
    Host,
    /// An IPv6 form that contains an IPv4 address in a way that this host cannot judge.
    #[error("it is a tunnelled address")]
    Tunnelled,
}

/// What no policy of a tenant opens, and what the operator opened of it.
#[derive(Debug, Clone, Default)]
pub struct Floor {
    /// Addresses of this host and of its networks.
    host: Vec<IpNet>,
    /// What the operator lets sandboxes reach anyway.
    opened: Vec<IpNet>,
}

impl Floor {
    /// Returns the floor of a host with these addresses and networks. `opened` is what sandboxes may reach anyway, of the host's
    /// networks or of any other part of the floor. A check looks at each network of both lists.
    #[must_use]
    pub fn new(host: Vec<IpNet>, opened: Vec<IpNet>) -> Self {
        Self { host, opened }
    }

    /// Returns the address to connect to in place of `address`, in its plain form: an IPv6 address that only carries an IPv4
    /// address (IPv4-mapped, NAT64) is that IPv4 address.
    ///
    /// # Errors
    /// Why the address is below the floor.
    pub fn check(&self, address: IpAddr) -> Result<IpAddr, Below> {
        let plain = undisguised(address)?;
        if self.opened.iter().any(|net| net.contains(&plain)) {
            return Ok(plain);
        }
        if self.host.iter().any(|net| net.contains(&plain)) {
            return Err(Below::Host);
        }
        match plain {
            IpAddr::V4(v4) => below_v4(v4),
            IpAddr::V6(v6) => below_v6(v6),
        }
        .map_or(Ok(plain), Err)
    }
}

/// Returns the address that packets for `address` end at, so far as the address says it.
fn undisguised(address: IpAddr) -> Result<IpAddr, Below> {
    let IpAddr::V6(v6) = address else { return Ok(address) };
    let segments = v6.segments();
    let tail = || {
        let [.., a, b, c, d] = v6.octets();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4-mapped, ::ffff:a.b.c.d: the kernel makes an IPv4 connection of it.
        [0, 0, 0, 0, 0, 0xffff, _, _] => Ok(tail()),
        // The unspecified and the loopback address are judged below; all others below ::/96 are IPv4-compatible
        // (RFC 4291, 2.5.5.1), and nothing uses them any more.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Ok(address),
        [0, 0, 0, 0, 0, 0, _, _] => Err(Below::Tunnelled),
        // NAT64, 64:ff9b::/96 (RFC 6052): a translator on the way makes IPv4 of it.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Ok(tail()),
        // NAT64 for local use, 64:ff9b:1::/48 (RFC 8215): where the IPv4 address is in it, only its operator knows.
        [0x64, 0xff9b, 1, ..] => Err(Below::Tunnelled),
        // IPv4-translated, ::ffff:0:a.b.c.d (RFC 2765).
        [0, 0, 0, 0, 0xffff, 0, _, _] => Err(Below::Tunnelled),
        // 6to4 (RFC 3056) and Teredo (RFC 4380) lead to IPv4 addresses that they contain.
        [0x2002, ..] | [0x2001, 0, ..] => Err(Below::Tunnelled),
        // ISATAP (RFC 5214): an interface identifier of 0000:5efe or 0200:5efe before an IPv4 address.
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => Err(Below::Tunnelled),
        _ => Ok(address),
    }
}

fn below_v4(address: Ipv4Addr) -> Option<Below> {
    let below = match address.octets() {
        [0, ..] => Below::Unspecified,
        [127, ..] => Below::Loopback,
        [169, 254, ..] => Below::LinkLocal,
        // Metadata and the resolvers of clouds that lie outside of the ranges here.
        [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => Below::Metadata,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Below::Private,
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => {
            Below::Special
        }
        [224..=239, ..] => Below::Multicast,
        [240..=255, ..] => Below::Reserved,
        _ => return None,
    };
    Some(below)
}

fn below_v6(address: Ipv6Addr) -> Option<Below> {
    let below = match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Below::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Below::Loopback,
        [0xfe80..=0xfebf, ..] => Below::LinkLocal,
        // fd00:ec2::254 and fd20:ce::254 are in the private range anyway.
        [0xfec0..=0xfeff | 0xfc00..=0xfdff, ..] => Below::Private,
        [0xff00..=0xffff, ..] => Below::Multicast,
        [0x100, 0, 0, 0, ..] | [0x2001, 2, 0, ..] | [0x2001, 0x10..=0x3f, ..] | [0x2001, 0xdb8, ..] => Below::Special,
        [0x3fff, 0..=0xfff, ..] | [0x5f00, ..] => Below::Special,
        // Of what is left, only 2000::/3 is global unicast (RFC 4291, 2.4).
        [0x2000..=0x3fff, ..] => return None,
        _ => Below::Reserved,
    };
    Some(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str) -> Result<String, Below> {
        Floor::default().check(address.parse().unwrap()).map(|address| address.to_string())
    }

    #[test]
    fn public_addresses_are_above_the_floor() {
        for address in ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "172.15.0.1", "172.32.0.1", "100.63.0.1"] {
            assert_eq!(check(address).as_deref(), Ok(address));
        }
        for address in ["2606:4700:4700::1111", "2a00:1450::1"] {
            assert_eq!(check(address).as_deref(), Ok(address));
        }
    }

    #[test]
    fn everything_that_is_not_public_is_below() {
        for (address, below) in [
            ("0.0.0.0", Below::Unspecified),
            ("0.1.2.3", Below::Unspecified),
            ("127.0.0.1", Below::Loopback),
            ("127.255.255.254", Below::Loopback),
            ("169.254.169.254", Below::LinkLocal),
            ("100.100.100.200", Below::Metadata),
            ("168.63.129.16", Below::Metadata),
            ("10.0.0.1", Below::Private),
            ("172.16.0.1", Below::Private),
            ("172.31.255.255", Below::Private),
            ("192.168.1.1", Below::Private),
            ("100.64.0.1", Below::Private),
            ("192.0.2.1", Below::Special),
            ("198.19.0.1", Below::Special),
            ("224.0.0.1", Below::Multicast),
            ("240.0.0.1", Below::Reserved),
            ("255.255.255.255", Below::Reserved),
            ("::", Below::Unspecified),
            ("::1", Below::Loopback),
            ("fe80::1", Below::LinkLocal),
            ("fc00::1", Below::Private),
            ("fd00:ec2::254", Below::Private),
            ("fec0::1", Below::Private),
            ("ff02::1", Below::Multicast),
            ("2001:db8::1", Below::Special),
            ("4000::1", Below::Reserved),
        ] {
            assert_eq!(check(address), Err(below), "{address}");
        }
    }

    #[test]
    fn disguised_addresses_are_judged_by_what_they_lead_to() {
        for (address, below) in [
            ("::ffff:127.0.0.1", Below::Loopback),
            ("::ffff:169.254.169.254", Below::LinkLocal),
            ("64:ff9b::10.0.0.1", Below::Private),
            ("64:ff9b::a9fe:a9fe", Below::LinkLocal),
            ("64:ff9b:1::7f00:1", Below::Tunnelled),
            ("2002:7f00:1::", Below::Tunnelled),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Below::Tunnelled),
            ("::7f00:1", Below::Tunnelled),
            ("::ffff:0:7f00:1", Below::Tunnelled),
            ("2a00:1450::200:5efe:7f00:1", Below::Tunnelled),
        ] {
            assert_eq!(check(address), Err(below), "{address}");
        }
        assert_eq!(check("::ffff:1.1.1.1").as_deref(), Ok("1.1.1.1"));
        assert_eq!(check("64:ff9b::1.1.1.1").as_deref(), Ok("1.1.1.1"));
    }

    #[test]
    fn networks_of_the_host_are_below_and_the_operator_opens_any() {
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        let floor = Floor::new(nets(&["203.1.0.0/24", "10.0.0.0/24"]), nets(&["10.0.0.7/32"]));
        let check = |address: &str| floor.check(address.parse().unwrap());
        assert_eq!(check("203.1.0.9"), Err(Below::Host));
        assert_eq!(check("10.0.0.8"), Err(Below::Host));
        assert!(check("10.0.0.7").is_ok() && check("::ffff:10.0.0.7").is_ok());
    }
}
