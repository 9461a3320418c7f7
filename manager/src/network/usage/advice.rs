//! What would allow something that was refused. Names are a guest's: a rule is advised only if the
//! name is a domain name, whose characters are harmless.

use crate::audit::Event;
use sandboxvm_egress_policy::{
    floor::{Below, Floor},
    name::DomainName,
    policy::Refusal,
    rule::Rule,
};
use sandboxvm_protocol::egress::{DialFailure, Transport};
use std::net::IpAddr;

/// Ports whose protocols show the name of the host, so that a rule for the name need not name the
/// port.
const SHOW_NAMES: [u16; 2] = [80, 443];

/// The failures whose reason is the upstream proxy.
const OF_PROXY: [DialFailure; 5] = [
    DialFailure::NotProxied,
    DialFailure::Proxy,
    DialFailure::ProxyForbidden,
    DialFailure::ProxyUnreachable,
    DialFailure::ProxyLogin,
];

/// What would allow something that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// An allow rule.
    Allow(Rule),
    /// No deny rule like this.
    NoDeny(String),
    /// Only the operator can open the address.
    Operator(Below),
    /// The upstream proxy is the reason, and no rule would help.
    Proxy(DialFailure),
}

impl Event {
    /// Returns what would allow the use of the network that this line is about, if it was refused
    /// and something would.
    #[must_use]
    pub fn network_advice(&self) -> Option<Advice> {
        let decision = match self {
            Self::NetworkFlow { decision, .. } | Self::NetworkName { decision, .. } => decision,
            _ => return None,
        };
        if decision.allowed {
            return None;
        }
        if let Some(failure) = self.failure_of_proxy() {
            return Some(Advice::Proxy(failure));
        }
        if let Some(rule) = &decision.rule {
            return Some(Advice::NoDeny(rule.clone()));
        }
        match self {
            // An address that the operator opened is refused for another reason.
            Self::NetworkFlow { address, .. } => match Floor::default().check(*address) {
                Err(below) if decision.reason.as_ref() == Some(&below.to_string()) => Some(Advice::Operator(below)),
                Ok(_) | Err(_) => self.rule_for_it().map(Advice::Allow),
            },
            _ => self.rule_for_it().map(Advice::Allow),
        }
    }

    /// Returns why the upstream proxy did not carry the connection that this line is about.
    pub(crate) fn failure_of_proxy(&self) -> Option<DialFailure> {
        let Self::NetworkFlow { decision, .. } = self else { return None };
        let reason = decision.reason.as_ref().filter(|_| !decision.allowed)?;
        OF_PROXY.into_iter().find(|failure| *reason == failure.to_string())
    }

    /// Returns the narrowest rule that covers the use of the network that this line is about.
    pub(crate) fn rule_for_it(&self) -> Option<Rule> {
        match self {
            Self::NetworkFlow { transport, name, address, port, decision, .. } => {
                // A rule without a port allowed the name, and the protocol showed none.
                let needs_port = decision.reason.as_ref() == Some(&Refusal::NamelessProtocol.to_string());
                rule_for(*transport, name.as_deref(), *address, *port, needs_port)
            }
            Self::NetworkName { name, .. } => DomainName::parse(name.as_bytes()).ok()?.as_str().parse().ok(),
            _ => None,
        }
    }
}

fn rule_for(transport: Transport, name: Option<&str>, address: IpAddr, port: u16, needs_port: bool) -> Option<Rule> {
    let name = name.and_then(|name| DomainName::parse(name.as_bytes()).ok());
    let target = match (&name, address) {
        (Some(name), _) => name.as_str().to_owned(),
        (None, IpAddr::V4(address)) => address.to_string(),
        (None, IpAddr::V6(address)) => format!("[{address}]"),
    };
    let text = match transport {
        Transport::Tcp if name.is_some() && SHOW_NAMES.contains(&port) && !needs_port => target,
        Transport::Tcp => format!("{target}:{port}/tcp"),
        Transport::Udp => format!("{target}:{port}/udp"),
        Transport::Icmp => format!("{}/icmp", target.trim_matches(['[', ']'])),
    };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::NetworkDecision;
    use sandboxvm_protocol::egress::FlowEnd;

    fn flow(transport: Transport, name: Option<&str>, address: &str, port: u16, rule: Option<&str>) -> Event {
        Event::NetworkFlow {
            transport,
            name: name.map(str::to_owned),
            address: address.parse().unwrap(),
            port,
            decision: NetworkDecision { allowed: false, rule: rule.map(str::to_owned), reason: Some("x".into()) },
            proxied: false,
            bytes_out: 0,
            bytes_in: 0,
            millis: 0,
            end: FlowEnd::NotEstablished,
            count: 1,
        }
    }

    #[test]
    fn advised_rules_are_the_narrowest() {
        let advised = |event: Event| match event.network_advice() {
            Some(Advice::Allow(rule)) => rule.to_string(),
            other => panic!("{other:?}"),
        };
        let (v4, v6) = ("1.1.1.1", "2606:4700::1");
        assert_eq!(advised(flow(Transport::Tcp, Some("Git.example."), v4, 443, None)), "git.example");
        assert_eq!(advised(flow(Transport::Tcp, Some("git.example"), v4, 22, None)), "git.example:22/tcp");
        assert_eq!(advised(flow(Transport::Tcp, None, v4, 443, None)), "1.1.1.1:443/tcp");
        assert_eq!(advised(flow(Transport::Udp, None, v6, 53, None)), "[2606:4700::1]:53/udp");
        assert_eq!(advised(flow(Transport::Icmp, None, v6, 0, None)), "2606:4700::1/icmp");
        assert_eq!(advised(flow(Transport::Tcp, Some("a\u{1b}[2J"), v4, 80, None)), "1.1.1.1:80/tcp");
        let mut nameless = flow(Transport::Tcp, Some("git.example"), v4, 443, None);
        if let Event::NetworkFlow { decision, .. } = &mut nameless {
            decision.reason = Some(Refusal::NamelessProtocol.to_string());
        }
        assert_eq!(advised(nameless), "git.example:443/tcp");
        let decision = NetworkDecision { allowed: false, rule: None, reason: None };
        let name =
            |name: &str| Event::NetworkName { name: name.into(), question: 1, decision: decision.clone(), count: 1 };
        assert_eq!(advised(name("a.example")), "a.example");
        assert_eq!(name("a b").network_advice(), None);
    }

    #[test]
    fn denied_and_low_addresses_need_something_else_than_a_rule() {
        let denied = flow(Transport::Tcp, Some("a.example"), "1.1.1.1", 443, Some("*.example"));
        assert_eq!(denied.network_advice(), Some(Advice::NoDeny("*.example".into())));
        let mut below = flow(Transport::Tcp, None, "169.254.169.254", 80, None);
        assert!(matches!(below.network_advice(), Some(Advice::Allow(_))), "the operator opened it");
        if let Event::NetworkFlow { decision, .. } = &mut below {
            decision.reason = Some("it is a link-local address".into());
        }
        assert_eq!(below.network_advice(), Some(Advice::Operator(Below::LinkLocal)));
        assert_eq!(Event::Paused.network_advice(), None);
        for failure in OF_PROXY {
            assert!(failure.is_about_proxy() && failure.is_refusal());
            let mut proxied = flow(Transport::Tcp, Some("a.example"), "1.1.1.1", 443, None);
            if let Event::NetworkFlow { decision, .. } = &mut proxied {
                decision.reason = Some(failure.to_string());
            }
            assert_eq!(proxied.network_advice(), Some(Advice::Proxy(failure)));
        }
    }
}
