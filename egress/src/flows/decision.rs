//! What is done with a flow: the decisions of policy and floor, and those about the addresses and ports that are the
//! gateway's own.

use super::key::Key;
use crate::{
    session::{Session, refused, reported},
    stack::addresses::is_gateway,
};
use sandboxvm_egress_policy::{
    name::DomainName,
    policy::{self, Decision, Shown},
};
use sandboxvm_protocol::egress::{Decided, Dial, Transport};
use std::{net::IpAddr, time::Instant};

/// Port of DNS. Questions to every address are answered by the resolver.
const DNS: u16 = 53;

/// Port of TLS with HTTP in it, and of QUIC.
const HTTPS: u16 = 443;

/// Ports of name services that the resolver cannot stand in for: DNS in TLS or QUIC, multicast DNS, and LLMNR.
const OTHER_NAME_SERVICES: [u16; 3] = [853, 5353, 5355];

/// What is done with a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The resolver answers.
    Resolve,
    /// It is forwarded.
    Forward(Dial, Decided),
    /// It is dialled, and forwarded once it has shown its name.
    Inspect(Dial, policy::Flow),
    /// It is refused.
    Refuse(Decided),
}

/// What is known of a flow from its beginning and its first bytes.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The name that it showed, for its record. A guest can show any.
    pub name: Option<DomainName>,
    /// Names that led to its address when it began. They count as pinned as long as the flow is open.
    pub pinned: Vec<DomainName>,
    /// What its first bytes said.
    pub shown: Option<Shown>,
    /// How it is carried.
    pub carried: Carried,
}

/// How the bytes of a flow are carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Carried {
    /// What shows names is looked at.
    #[default]
    Watched,
    /// Nothing is looked at but the first bytes.
    Blindly,
}

/// Maximum number of names that a flow keeps.
pub const MAX_KEPT: usize = 32;

/// Decides about a flow that begins.
#[must_use]
pub fn begun(session: &Session, key: &Key) -> Verdict {
    if key.port == DNS && key.transport != Transport::Icmp {
        return Verdict::Resolve;
    }
    if key.transport != Transport::Icmp && OTHER_NAME_SERVICES.contains(&key.port) {
        // Multicast DNS and LLMNR are UDP, and TCP's port 5353 belongs to anyone.
        if key.transport == Transport::Udp || key.port == OTHER_NAME_SERVICES[0] {
            return Verdict::Refuse(refused("name services other than DNS on port 53 are refused"));
        }
    }
    if is_gateway(key.address) {
        return gateway(session, key);
    }
    let flow = match plain(session, key) {
        Ok(flow) => flow,
        Err(decided) => return Verdict::Refuse(decided),
    };
    let dial = match key.transport {
        Transport::Tcp => Dial::Tcp(flow.address, key.port),
        Transport::Udp => Dial::Udp(flow.address, key.port),
        Transport::Icmp => Dial::Echo(flow.address),
    };
    let pinned = session.pins.names_of(flow.address, Instant::now());
    let ends_tls = pinned.iter().any(|name| session.credentials.ends_tls(name));
    match session.policy_for(flow.address).begun(&flow, &pinned) {
        Decision::Allow(_) if ends_tls && key.transport == Transport::Udp && key.port == HTTPS => {
            Verdict::Refuse(refused("a header rule or secret is for this host, and QUIC cannot be ended"))
        }
        // It may be for a host whose TLS is ended.
        Decision::Allow(_) if key.transport == Transport::Tcp && (ends_tls || waits_for_hello(session, key)) => {
            Verdict::Inspect(dial, flow)
        }
        Decision::Inspect => Verdict::Inspect(dial, flow),
        decision @ Decision::Allow(_) => Verdict::Forward(dial, reported(&decision)),
        decision @ Decision::Refuse(..) => Verdict::Refuse(reported(&decision)),
    }
}

/// Decides about an open flow that has shown a name, or none. `Ok` if it is allowed.
///
/// # Errors
/// Why it is refused.
pub fn named(session: &Session, flow: &policy::Flow, known: &Known, shown: &Shown) -> Result<Decided, Decided> {
    let pinned = pinned(session, flow.address, known);
    let decision = session.policy_for(flow.address).named(flow, &pinned, shown);
    let decided = reported(&decision);
    if matches!(decision, Decision::Allow(_)) { Ok(decided) } else { Err(decided) }
}

/// Decides about an open flow again, after the settings have changed.
///
/// # Errors
/// Why it is refused now.
pub fn still(session: &Session, key: &Key, known: &Known, is_inspected: bool) -> Result<(), Decided> {
    if is_gateway(key.address) || key.port == DNS {
        return match begun(session, key) {
            Verdict::Refuse(decided) => Err(decided),
            Verdict::Resolve | Verdict::Forward(..) | Verdict::Inspect(..) => Ok(()),
        };
    }
    let flow = plain(session, key)?;
    match session.policy_for(flow.address).begun(&flow, &pinned(session, flow.address, known)) {
        Decision::Allow(_) => Ok(()),
        // It has shown nothing yet, and is decided when it does.
        Decision::Inspect if is_inspected && known.shown.is_none() => Ok(()),
        // Its requests were never looked at, and the next one can be for another host.
        Decision::Inspect if known.carried == Carried::Blindly => {
            Err(refused("it was opened when no rule was about names"))
        }
        Decision::Inspect => {
            let shown = known.shown.as_ref().unwrap_or(&Shown::Nameless);
            named(session, &flow, known, shown).map(drop)
        }
        decision @ Decision::Refuse(..) => Err(reported(&decision)),
    }
}

/// Returns true for a port on which clients speak first, and a connection can name a host whose TLS is ended although the
/// guest did not get its address from the resolver.
fn waits_for_hello(session: &Session, key: &Key) -> bool {
    key.port == HTTPS && !session.credentials.is_empty()
}

fn gateway(session: &Session, key: &Key) -> Verdict {
    if key.transport != Transport::Tcp {
        return Verdict::Refuse(refused("services of the host are TCP"));
    }
    match session.policy.host_service(key.port) {
        decision @ Decision::Allow(_) => Verdict::Forward(Dial::HostPort(key.port), reported(&decision)),
        decision => Verdict::Refuse(reported(&decision)),
    }
}

fn plain(session: &Session, key: &Key) -> Result<policy::Flow, Decided> {
    if is_gateway(key.address) {
        return Err(refused("it is not a service of the host that a rule allows"));
    }
    let address = session.floor.check(key.address).map_err(|below| refused(below.to_string()))?;
    Ok(policy::Flow { protocol: key.protocol(), address, port: key.port })
}

fn pinned(session: &Session, address: IpAddr, known: &Known) -> Vec<DomainName> {
    let mut pinned = session.pins.names_of(address, Instant::now());
    for name in &known.pinned {
        if !pinned.contains(name) {
            pinned.push(name.clone());
        }
    }
    pinned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::trust::Trust;
    use sandboxvm_protocol::egress::{NetworkSettings, Reach};
    use std::time::Duration;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4));

    fn settings(allow: &str) -> NetworkSettings {
        NetworkSettings { reach: Reach::Listed, allow: vec![allow.to_owned()], ..NetworkSettings::default() }
    }

    fn key(transport: Transport, port: u16) -> Key {
        Key { transport, from: 40_000, address: ADDRESS, port }
    }

    #[test]
    fn an_open_flow_outlives_its_pin_but_not_its_rule() {
        let mut session = Session::new(0, Trust::default());
        session.configure(settings("a.example:22")).unwrap();
        let name: DomainName = "a.example".parse().unwrap();
        let flow = key(Transport::Tcp, 22);
        // A pin of two minutes ago has expired.
        let Some(before) = Instant::now().checked_sub(Duration::from_secs(120)) else { return };
        session.pins.pin(&name, ADDRESS, Duration::ZERO, before);
        assert!(matches!(begun(&session, &flow), Verdict::Refuse(_)));
        let known = Known { pinned: vec![name], ..Known::default() };
        assert_eq!(still(&session, &flow, &known, false), Ok(()));
        session.configure(settings("b.example:22")).unwrap();
        still(&session, &flow, &known, false).unwrap_err();
        session.configure(NetworkSettings::default()).unwrap();
        still(&session, &flow, &known, false).unwrap_err();
    }

    #[test]
    fn a_name_that_a_flow_only_showed_is_not_pinned() {
        let mut session = Session::new(0, Trust::default());
        session.configure(settings("a.example")).unwrap();
        let name: DomainName = "a.example".parse().unwrap();
        let known = Known { name: Some(name.clone()), shown: Some(Shown::Name(name)), ..Known::default() };
        still(&session, &key(Transport::Tcp, 443), &known, false).unwrap_err();
    }

    #[test]
    fn name_services_lead_to_the_resolver_or_nowhere() {
        let mut session = Session::new(0, Trust::default());
        session.configure(NetworkSettings { reach: Reach::Public, ..NetworkSettings::default() }).unwrap();
        for (transport, port, resolves) in [
            (Transport::Udp, 53, true),
            (Transport::Tcp, 53, true),
            (Transport::Tcp, 853, false),
            (Transport::Udp, 853, false),
            (Transport::Udp, 5353, false),
            (Transport::Udp, 5355, false),
        ] {
            let verdict = begun(&session, &key(transport, port));
            let is_right = if resolves { verdict == Verdict::Resolve } else { matches!(verdict, Verdict::Refuse(_)) };
            assert!(is_right, "{transport:?} {port}: {verdict:?}");
        }
        assert!(matches!(begun(&session, &key(Transport::Tcp, 5353)), Verdict::Forward(..)));
    }
}
