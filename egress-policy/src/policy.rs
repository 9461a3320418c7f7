//! What one sandbox may reach. A policy is immutable: a live change replaces the whole of it. It decides three times:
//! when a name is asked for, when a connection begins, and when the connection has shown a name. What it cannot decide
//! it refuses. It knows no addresses that are always refused: that is the [`floor`](crate::floor).

use crate::{
    name::DomainName,
    rule::{Protocol, Rule, Target},
};
use std::net::IpAddr;

/// UDP port of QUIC as HTTP/3 has it.
const QUIC: u16 = 443;

/// What a sandbox may reach before any rule is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Nothing, whatever the rules say.
    #[default]
    Nothing,
    /// What a rule allows.
    Listed,
    /// Every address above the floor.
    Public,
}

/// Which list wins when a rule of each matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precedence {
    /// A rule that denies wins, as on the command line.
    #[default]
    Deny,
    /// A rule that allows wins, as with E2B.
    Allow,
}

/// The policy of a sandbox. The default reaches nothing.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// What is reached where no rule matches.
    pub reach: Reach,
    /// What is allowed. Their number is the caller's to bound: a decision looks at each of them.
    pub allow: Vec<Rule>,
    /// What is denied.
    pub deny: Vec<Rule>,
    /// Which of both lists wins.
    pub precedence: Precedence,
}

/// A connection that the guest begins, or the first datagram of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Transport.
    pub protocol: Protocol,
    /// Where it goes, in its plain form (see [`Floor::check`](crate::floor::Floor::check)).
    pub address: IpAddr,
    /// Port there, 1-65535; 0 for a protocol without ports.
    pub port: u16,
}

/// The name that a connection has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// One, in TLS's SNI or HTTP's Host.
    Name(DomainName),
    /// Its protocol shows none, as SSH, or the server speaks first.
    Nameless,
    /// Its protocol shows names and this connection hid its own, or showed two.
    Hidden,
}

/// Why something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// There is no network.
    #[error("the sandbox has no network")]
    NoNetwork,
    /// A deny rule matched.
    #[error("a rule denies it")]
    Denied,
    /// No allow rule matched.
    #[error("no rule allows it")]
    NotListed,
    /// A rule would match the name, but the guest did not get this address from the resolver.
    #[error("no rule allows the address, and it was not the answer to a name that a rule allows")]
    NotAsked,
    /// The name that the connection showed is not one that led to this address.
    #[error("the connection names a host that was not asked for")]
    OtherName,
    /// The connection hid the name of its host.
    #[error("the connection does not say which host it is for")]
    HiddenName,
    /// A rule matches the name, but the protocol shows none, and the rule names no port.
    #[error("the protocol shows no name, and the rule for the name does not say the port")]
    NamelessProtocol,
}

/// A decision, and the rule that led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'p> {
    /// Let it pass.
    Allow(Option<&'p Rule>),
    /// Wait until the connection has shown its name, then ask [`Policy::named`].
    Inspect,
    /// Refuse.
    Refuse(Refusal, Option<&'p Rule>),
}

impl Policy {
    /// Decides about a question for the addresses of `name`. A name that is refused never reaches another resolver.
    #[must_use]
    pub fn asked(&self, name: &DomainName) -> Decision<'_> {
        // A rule about one port leaves the name usable for the others.
        let denied = self.deny.iter().find(|rule| rule.has_name(name) && rule.is_unrestricted());
        let allowed = self.allow.iter().find(|rule| rule.has_name(name));
        self.weigh(allowed, denied, Refusal::NotListed)
    }

    /// Decides about a flow whose address was the answer to questions for `pinned`.
    #[must_use]
    pub fn begun(&self, flow: &Flow, pinned: &[DomainName]) -> Decision<'_> {
        if self.reach == Reach::Nothing {
            return Decision::Refuse(Refusal::NoNetwork, None);
        }
        let (allowed, denied) = (by_address(&self.allow, flow), by_address(&self.deny, flow));
        let is_settled = match self.precedence {
            Precedence::Deny => denied.is_some(),
            Precedence::Allow => allowed.is_some(),
        };
        if is_settled {
            return self.weigh(allowed, denied, Refusal::NotListed);
        }
        // Names can still change what addresses say: a connection that shows one is judged by it.
        let can_be_allowed = pinned.iter().any(|name| by_name(&self.allow, flow, name).is_some());
        let undecided = self.weigh(allowed, denied, Refusal::NotAsked);
        let waits = match undecided {
            Decision::Allow(_) => self.can_deny_names(flow),
            _ => can_be_allowed,
        };
        match (waits, flow.protocol) {
            (false, _) => undecided,
            (true, Protocol::Tcp) => Decision::Inspect,
            // QUIC shows no name that can be read, and its clients fall back to TCP.
            (true, Protocol::Udp) if flow.port == QUIC && self.can_deny_names(flow) => {
                self.named(flow, pinned, &Shown::Hidden)
            }
            (true, Protocol::Udp | Protocol::Icmp) => self.named(flow, pinned, &Shown::Nameless),
        }
    }

    /// Decides about a flow that [`Policy::begun`] wants inspected, once it has shown a name or turned out to show none.
    #[must_use]
    pub fn named(&self, flow: &Flow, pinned: &[DomainName], shown: &Shown) -> Decision<'_> {
        let (address_allows, address_denies) = (by_address(&self.allow, flow), by_address(&self.deny, flow));
        match shown {
            Shown::Name(name) => {
                let denied = address_denies.or_else(|| denied_name(&self.deny, flow, name));
                // The name counts only where this sandbox asked for it and got this address.
                let allowed = match by_name(&self.allow, flow, name) {
                    Some(rule) if pinned.contains(name) => Some(rule),
                    Some(_) if address_allows.is_none() && self.reach != Reach::Public => {
                        return Decision::Refuse(Refusal::OtherName, None);
                    }
                    Some(_) | None => address_allows,
                };
                let otherwise = if pinned.contains(name) { Refusal::NotListed } else { Refusal::OtherName };
                self.weigh(allowed, denied, otherwise)
            }
            Shown::Nameless => {
                let denied =
                    address_denies.or_else(|| pinned.iter().find_map(|name| denied_name(&self.deny, flow, name)));
                // A rule that names no port does not hide one behind it that does.
                let holds = |rule: &&Rule, name| {
                    rule.names_port() && rule.covers(flow.protocol, flow.port) && rule.has_name(name)
                };
                let named = pinned.iter().find_map(|name| self.allow.iter().find(|rule| holds(rule, name)));
                self.weigh(address_allows.or(named), denied, Refusal::NamelessProtocol)
            }
            Shown::Hidden => match self.weigh(address_allows, address_denies, Refusal::HiddenName) {
                // Where a rule denies names, a connection that hides its own may be for any of them.
                Decision::Allow(_) if self.can_deny_names(flow) => Decision::Refuse(Refusal::HiddenName, None),
                decision => decision,
            },
        }
    }

    /// Returns the rule that lets a sandbox reach the service of the host on this TCP port.
    #[must_use]
    pub fn host_service(&self, port: u16) -> Decision<'_> {
        let about = |rule: &&Rule| *rule.target() == Target::Host && rule.covers(Protocol::Tcp, port);
        let (allowed, denied) = (self.allow.iter().find(about), self.deny.iter().find(about));
        match self.reach {
            Reach::Nothing => Decision::Refuse(Refusal::NoNetwork, None),
            // Services of the host are never part of what is public.
            Reach::Public | Reach::Listed if allowed.is_none() => Decision::Refuse(Refusal::NotListed, None),
            Reach::Public | Reach::Listed => self.weigh(allowed, denied, Refusal::NotListed),
        }
    }

    fn weigh<'p>(&self, allowed: Option<&'p Rule>, denied: Option<&'p Rule>, otherwise: Refusal) -> Decision<'p> {
        match (self.reach, allowed, denied) {
            (Reach::Nothing, ..) => Decision::Refuse(Refusal::NoNetwork, None),
            (_, Some(rule), None) => Decision::Allow(Some(rule)),
            (_, Some(rule), Some(_)) if self.precedence == Precedence::Allow => Decision::Allow(Some(rule)),
            (_, _, Some(rule)) => Decision::Refuse(Refusal::Denied, Some(rule)),
            (Reach::Public, None, None) => Decision::Allow(None),
            (Reach::Listed, None, None) => Decision::Refuse(otherwise, None),
        }
    }

    fn can_deny_names(&self, flow: &Flow) -> bool {
        let is_about =
            |rule: &Rule| matches!(rule.target(), Target::Domain(_)) && rule.denies(flow.protocol, flow.port);
        self.precedence == Precedence::Deny && self.deny.iter().any(is_about)
    }
}

fn by_address<'p>(rules: &'p [Rule], flow: &Flow) -> Option<&'p Rule> {
    rules.iter().find(|rule| rule.covers(flow.protocol, flow.port) && rule.has_address(flow.address))
}

fn by_name<'p>(rules: &'p [Rule], flow: &Flow, name: &DomainName) -> Option<&'p Rule> {
    rules.iter().find(|rule| rule.covers(flow.protocol, flow.port) && rule.has_name(name))
}

fn denied_name<'p>(rules: &'p [Rule], flow: &Flow, name: &DomainName) -> Option<&'p Rule> {
    rules.iter().find(|rule| rule.denies(flow.protocol, flow.port) && rule.has_name(name))
}

#[cfg(test)]
mod tests;
