//! One rule: a target, ports and a protocol, and the text that a user writes for it:
//! `TARGET[:PORT[-PORT]][/tcp|/udp|/icmp]`. Whether a rule allows or denies is not its own affair.

use crate::name::{DomainName, DomainPattern, NameError};
use ipnet::IpNet;
use std::{fmt, net::IpAddr, str::FromStr};

/// The word for services of the host itself, as in `host:5432`.
const HOST: &str = "host";

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Names.
    Domain(DomainPattern),
    /// Addresses.
    Net(IpNet),
    /// A service that listens on the loopback address of the host. Such a rule names one port.
    Host,
}

/// Transport protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo, of either version. It has no ports.
    Icmp,
}

/// Ports from a first to a last one, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    target: Target,
    ports: Option<Ports>,
    protocol: Option<Protocol>,
}

/// Why a text is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Before the port.
    #[error("invalid target {target:?}: {problem}")]
    Name {
        /// The part of the rule.
        target: String,
        /// What is wrong with it as a domain name.
        problem: NameError,
    },
    /// An address with a prefix length.
    #[error("invalid network {0:?}: expected an address, a slash and the length of its prefix")]
    Net(String),
    /// The address of a network has bits that its prefix does not cover.
    #[error("invalid network {given}: its prefix covers {network}")]
    HostBits {
        /// As written.
        given: IpNet,
        /// What it covers.
        network: IpNet,
    },
    /// After the colon.
    #[error("invalid port {0:?}: expected a number from 1 to 65535, or two of them with a hyphen between them")]
    Port(String),
    /// After the last slash.
    #[error("invalid protocol {0:?}: expected tcp, udp or icmp")]
    Protocol(String),
    /// `icmp` with a port.
    #[error("icmp has no ports")]
    IcmpPort,
    /// `host` without one TCP port.
    #[error("a rule for a service of the host names one TCP port, as host:5432")]
    HostPort,
    /// A name in another script than ASCII.
    #[error("invalid target {0:?}: expected the ASCII form of the name, which begins with xn--")]
    NotAscii(String),
}

impl Rule {
    /// Returns a rule for all ports and protocols that `target` can have.
    #[must_use]
    pub fn all_of(target: IpNet) -> Self {
        Self { target: Target::Net(target), ports: None, protocol: None }
    }

    /// Returns what the rule is about.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns true if the rule names the port that it is about. Such a rule also holds for protocols that never say which
    /// name they connect to.
    #[must_use]
    pub fn names_port(&self) -> bool {
        self.ports.is_some()
    }

    /// Returns true if the rule says nothing about ports or protocols, so that it holds for all uses of its target.
    #[must_use]
    pub fn is_unrestricted(&self) -> bool {
        self.ports.is_none() && self.protocol.is_none()
    }

    /// Returns true if the rule is about this transport. A rule about names that names no protocol is about TCP alone:
    /// QUIC hides the name, and its clients fall back to TCP.
    #[must_use]
    pub fn covers(&self, protocol: Protocol, port: u16) -> bool {
        let protocols = match (self.protocol, &self.target) {
            (Some(named), _) => named == protocol,
            (None, Target::Net(_)) => self.ports.is_none() || protocol != Protocol::Icmp,
            (None, Target::Domain(_) | Target::Host) => protocol == Protocol::Tcp,
        };
        protocols && self.ports.is_none_or(|ports| (ports.first..=ports.last).contains(&port))
    }

    /// Returns the port of the host's service that the rule is about, if it is about one.
    #[must_use]
    pub fn host_port(&self) -> Option<u16> {
        self.ports.filter(|_| self.target == Target::Host).map(|ports| ports.first)
    }

    /// Returns true if everything that this rule is about is something that `other` is about.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        let targets = match (&self.target, &other.target) {
            (Target::Domain(own), Target::Domain(theirs)) => own.is_within(theirs),
            (Target::Net(own), Target::Net(theirs)) => theirs.contains(own),
            (Target::Host, Target::Host) => true,
            _ => false,
        };
        let ports = match (self.ports, other.ports) {
            (_, None) => true,
            (Some(own), Some(theirs)) => theirs.first <= own.first && own.last <= theirs.last,
            (None, Some(_)) => false,
        };
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];
        let port = |rule: &Self| rule.ports.map_or(1, |ports| ports.first);
        targets
            && ports
            && protocols
                .iter()
                .all(|protocol| !self.covers(*protocol, port(self)) || other.covers(*protocol, port(self)))
    }

    /// Returns true if the rule is about this transport when it denies. A rule about names that names no protocol denies
    /// all of them: what hides its name is not let pass for it.
    #[must_use]
    pub fn denies(&self, protocol: Protocol, port: u16) -> bool {
        let is_of_names = matches!(self.target, Target::Domain(_)) && self.protocol.is_none();
        if is_of_names {
            return self.ports.is_none_or(|ports| (ports.first..=ports.last).contains(&port));
        }
        self.covers(protocol, port)
    }

    /// Returns true if the rule is about addresses, and about this one.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        matches!(&self.target, Target::Net(net) if net.contains(&address))
    }

    /// Returns true if the rule is about names, and about this one.
    #[must_use]
    pub fn has_name(&self, name: &DomainName) -> bool {
        matches!(&self.target, Target::Domain(pattern) if pattern.matches(name))
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (rest, protocol) = split_protocol(text)?;
        let (target, ports) = split_ports(rest)?;
        let rule = Self { target: parse_target(target)?, ports, protocol };
        if rule.protocol == Some(Protocol::Icmp) && rule.ports.is_some() {
            return Err(RuleError::IcmpPort);
        }
        let is_one_port = rule.ports.is_some_and(|ports| ports.first == ports.last);
        if rule.target == Target::Host && !(is_one_port && matches!(rule.protocol, None | Some(Protocol::Tcp))) {
            return Err(RuleError::HostPort);
        }
        Ok(rule)
    }
}

/// Splits off a protocol. What follows the last slash is a protocol unless it is the length of a prefix.
fn split_protocol(text: &str) -> Result<(&str, Option<Protocol>), RuleError> {
    let Some((rest, last)) = text.rsplit_once('/') else { return Ok((text, None)) };
    if last.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'-' | b']')) && !last.is_empty() {
        return Ok((text, None));
    }
    let protocol = match last {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" => Protocol::Icmp,
        _ => return Err(RuleError::Protocol(last.to_owned())),
    };
    Ok((rest, Some(protocol)))
}

/// Splits off ports. An IPv6 address with a port is in brackets, as in a URL.
fn split_ports(text: &str) -> Result<(&str, Option<Ports>), RuleError> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let Some((target, after)) = bracketed.split_once(']') else { return Err(RuleError::Net(text.to_owned())) };
        return match after.strip_prefix(':') {
            Some(ports) => Ok((target, Some(ports.parse()?))),
            None if after.is_empty() => Ok((target, None)),
            None => Err(RuleError::Port(after.to_owned())),
        };
    }
    match text.split_once(':') {
        // Two colons are an IPv6 address without a port.
        Some((_, ports)) if ports.contains(':') => Ok((text, None)),
        Some((target, ports)) => Ok((target, Some(ports.parse()?))),
        None => Ok((text, None)),
    }
}

fn parse_target(target: &str) -> Result<Target, RuleError> {
    if target == HOST {
        return Ok(Target::Host);
    }
    if let Ok(address) = target.parse::<IpAddr>() {
        return Ok(Target::Net(address.into()));
    }
    if target.contains('/') {
        let given: IpNet = target.parse().map_err(|_| RuleError::Net(target.to_owned()))?;
        let network = given.trunc();
        return if given == network { Ok(Target::Net(network)) } else { Err(RuleError::HostBits { given, network }) };
    }
    if !target.is_ascii() {
        return Err(RuleError::NotAscii(target.to_owned()));
    }
    target.parse().map(Target::Domain).map_err(|problem| RuleError::Name { target: target.to_owned(), problem })
}

impl FromStr for Ports {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let invalid = || RuleError::Port(text.to_owned());
        let number = |text: &str| {
            // `parse` takes a sign.
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|port: &u16| is_plain && *port != 0).ok_or_else(invalid)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ports = Self { first: number(first)?, last: number(last)? };
        if ports.first <= ports.last { Ok(ports) } else { Err(invalid()) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last == self.first { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(pattern) => pattern.fmt(f),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Host => f.write_str(HOST),
        }
    }
}

/// Writes the text that is parsed as this rule.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, self.ports) {
            (Target::Net(IpNet::V6(_)), Some(ports)) => write!(f, "[{}]:{ports}", self.target)?,
            (target, Some(ports)) => write!(f, "{target}:{ports}")?,
            (target, None) => target.fmt(f)?,
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{protocol}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn rules_are_printed_as_they_are_written() {
        for text in [
            "example.com",
            "*.example.com",
            "example.com:443",
            "example.com:8000-8080/tcp",
            "example.com/udp",
            "192.0.2.1",
            "192.0.2.0/24",
            "192.0.2.0/24:53/udp",
            "10.0.0.0/8:1-65535",
            "2001:db8::1",
            "2001:db8::/32",
            "[2001:db8::1]:443",
            "[2001:db8::/32]:443/tcp",
            "192.0.2.1/icmp",
            "host:5432",
            "0.0.0.0/0",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
        assert_eq!(rule("API.Example.com.").to_string(), "api.example.com");
        assert_eq!(rule("[2001:db8::1]").to_string(), "2001:db8::1");
    }

    #[test]
    fn texts_that_are_not_rules_are_rejected() {
        for text in [
            "",
            "example.com:",
            "example.com:0",
            "example.com:65536",
            "example.com:+1",
            "example.com:9-8",
            "example.com:a",
            "example.com/sctp",
            "example.com/",
            "192.0.2.1/24",
            "192.0.2.0/33",
            "192.0.2.1:5/icmp",
            "host",
            "host:1-2",
            "host:53/udp",
            "[2001:db8::1",
            "[2001:db8::1]x",
            "[2001:db8::1]:",
            "b\u{fc}cher.example",
            "http://example.com",
            "127.1",
            "*",
            "*.*.example.com",
            "a.*.example.com",
            " example.com",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn rules_about_names_are_about_tcp_unless_they_say_udp() {
        let named = rule("example.com");
        assert!(named.covers(Protocol::Tcp, 443) && !named.covers(Protocol::Udp, 443));
        let both = rule("192.0.2.1");
        assert!([Protocol::Tcp, Protocol::Udp, Protocol::Icmp].iter().all(|protocol| both.covers(*protocol, 1)));
        let port = rule("192.0.2.1:53");
        assert!(port.covers(Protocol::Udp, 53) && !port.covers(Protocol::Udp, 54) && !port.covers(Protocol::Icmp, 53));
    }

    #[test]
    fn rules_are_within_those_that_cover_all_of_them() {
        for (own, other) in [
            ("a.example", "*.example"),
            ("*.a.example", "*.example"),
            ("a.example:443", "a.example"),
            ("a.example:443", "a.example:440-450"),
            ("192.0.2.0/28", "192.0.2.0/24"),
            ("192.0.2.1:53/udp", "192.0.2.0/24:53"),
            ("host:5432", "host:5432"),
        ] {
            assert!(rule(own).is_within(&rule(own)) && rule(own).is_within(&rule(other)), "{own} {other}");
        }
        for (own, other) in [
            ("*.example", "a.example"),
            ("example", "*.example"),
            ("a.example", "a.example:443"),
            ("a.example/udp", "a.example"),
            ("192.0.2.0/24", "192.0.2.0/28"),
            ("192.0.2.1", "192.0.2.1/tcp"),
            ("host:5432", "host:5433"),
            ("host:5432", "0.0.0.0/0"),
        ] {
            assert!(!rule(own).is_within(&rule(other)), "{own} {other}");
        }
    }

    proptest! {
        #[test]
        fn every_text_is_refused_or_has_one_meaning(text in "[a-z0-9.:/*\\[\\]-]{0,40}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
            }
        }
    }
}
