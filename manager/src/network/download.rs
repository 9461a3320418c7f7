//! Which addresses this process may connect to when it downloads something that a sandbox or a build names: what the
//! network of that sandbox would reach, and nothing below the floor. As for a guest, the policy first decides whether a
//! name may be resolved at all, and then about the address, so a redirect or another answer of a resolver changes
//! nothing. May not resolve a name or connect.

use super::{
    operator::NetworkOperator,
    spec::{NetworkSpec, NetworkSpecError},
};
use ipnet::IpNet;
use rustix::io::Errno;
use sandboxvm_egress_policy::{
    floor::Floor,
    name::DomainName,
    policy::{self, Decision, Flow, Policy, Shown},
    rule::Protocol,
};
use sandboxvm_oci::registry::Reach as RegistryReach;
use sandboxvm_protocol::egress::{Precedence, Reach};
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
};

/// What a network permits downloads from.
#[derive(Debug)]
pub struct DownloadReach {
    policy: Policy,
    floor: Floor,
    opened: Vec<IpNet>,
}

impl DownloadReach {
    /// Returns what `spec` permits on a host with this operator.
    ///
    /// # Errors
    /// Fails if the operator does not permit the network, or if its connections go through a proxy: a download has none.
    pub fn of(spec: &NetworkSpec, operator: &NetworkOperator) -> Result<Self, NetworkSpecError> {
        if let Some(permits) = &operator.permits {
            permits.check(spec)?;
        }
        if spec.proxy.is_some() || operator.provides.proxy.is_some() {
            return Err(NetworkSpecError::NotPermitted("downloads in a network with a proxy".to_owned()));
        }
        let policy = Policy {
            reach: match spec.reach {
                Reach::Nothing => policy::Reach::Nothing,
                Reach::Listed => policy::Reach::Listed,
                Reach::Public => policy::Reach::Public,
            },
            allow: spec.allow.clone(),
            deny: spec.deny.clone(),
            precedence: match spec.precedence {
                Precedence::Deny => policy::Precedence::Deny,
                Precedence::Allow => policy::Precedence::Allow,
            },
        };
        let opened = operator.provides.opened.clone();
        Ok(Self { policy, floor: Floor::new(Vec::new(), opened.clone()), opened })
    }
}

impl RegistryReach for DownloadReach {
    fn may_resolve(&self, host: &str) -> bool {
        // A name that no rule can be about is not needed for anything.
        let Ok(name) = DomainName::parse(host.as_bytes()) else { return false };
        matches!(self.policy.asked(&name), Decision::Allow(_))
    }

    fn allows(&self, host: &str, address: SocketAddr) -> bool {
        let Ok(plain) = self.floor.check(address.ip()) else { return false };
        let is_opened = self.opened.iter().any(|net| net.contains(&plain));
        if !is_opened && is_of_this_host(plain) {
            return false;
        }
        // As in the egress process: what the operator opened of the floor is not public, and needs a rule.
        let listed = Policy { reach: policy::Reach::Listed, ..self.policy.clone() };
        let policy = if is_opened && self.policy.reach == policy::Reach::Public { &listed } else { &self.policy };
        let flow = Flow { protocol: Protocol::Tcp, address: plain, port: address.port() };
        let name = DomainName::parse(host.as_bytes()).ok();
        let pinned: Vec<_> = name.into_iter().collect();
        let decision = match (policy.begun(&flow, &pinned), pinned.first()) {
            // This process sends the name that it resolved.
            (Decision::Inspect, Some(name)) => policy.named(&flow, &pinned, &Shown::Name(name.clone())),
            // An address in a URL hides no name.
            (Decision::Inspect, None) => policy.named(&flow, &[], &Shown::Nameless),
            (decision, _) => decision,
        };
        matches!(decision, Decision::Allow(_))
    }
}

/// Returns true for an address of this host, and for one of which the host does not say so.
#[must_use]
pub fn is_of_this_host(address: IpAddr) -> bool {
    match TcpListener::bind((address, 0)) {
        // Only an address of this host can be bound.
        Ok(_) => true,
        Err(error) => !is_elsewhere(&error),
    }
}

/// Returns true if an attempt to bind an address failed because it is not of this host. Any other failure, such as too
/// many open files, says nothing about the address.
fn is_elsewhere(error: &io::Error) -> bool {
    let error = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(error, Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::operator::Provided;

    fn reach(spec: &NetworkSpec, opened: &[&str]) -> DownloadReach {
        let opened = opened.iter().map(|net| net.parse().unwrap()).collect();
        let provides = Provided { opened, ..Provided::default() };
        DownloadReach::of(spec, &NetworkOperator { provides, ..NetworkOperator::default() }).unwrap()
    }

    fn spec(reach: Reach, allow: &[&str], deny: &[&str]) -> NetworkSpec {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        NetworkSpec { reach, allow: rules(allow), deny: rules(deny), ..NetworkSpec::default() }
    }

    #[test]
    fn downloads_reach_what_the_network_reaches() {
        let listed = reach(&spec(Reach::Listed, &["a.example:443", "192.0.2.0/24"], &[]), &[]);
        let allows = |reach: &DownloadReach, host: &str, address: &str| reach.allows(host, address.parse().unwrap());
        assert!(allows(&listed, "a.example", "93.184.215.14:443"));
        assert!(!allows(&listed, "a.example", "93.184.215.14:80"), "the rule names another port");
        assert!(!allows(&listed, "b.example", "93.184.215.14:443") && !allows(&listed, "1.1.1.1", "1.1.1.1:443"));
        let public = reach(&spec(Reach::Public, &[], &["ads.example"]), &[]);
        assert!(allows(&public, "b.example", "93.184.215.14:443") && allows(&public, "1.1.1.1", "1.1.1.1:80"));
        assert!(!allows(&public, "ads.example", "93.184.215.14:443"));
        let nothing = reach(&spec(Reach::Nothing, &["a.example"], &[]), &[]);
        assert!(!allows(&nothing, "a.example", "93.184.215.14:443"));
    }

    #[test]
    fn names_that_the_policy_refuses_are_not_resolved() {
        let listed =
            reach(&spec(Reach::Listed, &["a.example:443", "*.b.example", "192.0.2.0/24"], &["x.b.example"]), &[]);
        let names = ["a.example", "c.b.example", "x.b.example", "data.attacker.example", "not a name"];
        assert_eq!(names.map(|name| listed.may_resolve(name)), [true, true, false, false, false]);
        let public = reach(&spec(Reach::Public, &[], &["ads.example"]), &[]);
        assert_eq!(["a.example", "ads.example"].map(|name| public.may_resolve(name)), [true, false]);
        let nothing = reach(&spec(Reach::Nothing, &["a.example"], &[]), &[]);
        assert!(!nothing.may_resolve("a.example"));
    }

    #[test]
    fn downloads_stay_above_the_floor_whatever_a_rule_says() {
        let all = ["metadata.example", "169.254.169.254", "127.0.0.1", "10.0.0.0/8"];
        let closed = reach(&spec(Reach::Public, &all, &[]), &[]);
        for address in ["169.254.169.254:80", "127.0.0.1:80", "[::1]:80", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
            assert!(!closed.allows("metadata.example", address.parse().unwrap()), "{address}");
        }
        // What the operator opened needs a rule as well.
        let opened = reach(&spec(Reach::Public, &["10.0.0.7"], &[]), &["10.0.0.0/24"]);
        assert!(opened.allows("x.example", "10.0.0.7:80".parse().unwrap()));
        assert!(!opened.allows("x.example", "10.0.0.8:80".parse().unwrap()));
        assert!(!opened.allows("x.example", "10.1.0.7:80".parse().unwrap()));
    }

    #[test]
    fn addresses_of_which_nothing_is_known_are_of_this_host() {
        assert!(is_of_this_host("127.0.0.1".parse().unwrap()));
        assert!(!is_of_this_host("192.0.2.1".parse().unwrap()) && !is_of_this_host("2001:db8::1".parse().unwrap()));
        for (error, expected) in
            [(Errno::ADDRNOTAVAIL, true), (Errno::AFNOSUPPORT, true), (Errno::MFILE, false), (Errno::NOBUFS, false)]
        {
            assert_eq!(is_elsewhere(&error.into()), expected, "{error}");
        }
        assert!(!is_elsewhere(&io::Error::other("unknown")));
    }

    #[test]
    fn network_with_a_proxy_has_no_downloads() {
        let proxy = Some("socks5://proxy.example:1080".parse().unwrap());
        let spec = NetworkSpec { proxy, ..spec(Reach::Public, &[], &[]) };
        DownloadReach::of(&spec, &NetworkOperator::default()).unwrap_err();
    }
}
