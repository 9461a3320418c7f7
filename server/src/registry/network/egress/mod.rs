//! What a sandbox may reach, in the words of its client (E2B's JSON), and what they mean as settings of a network.
//!
//! In these lists allow beats deny, no list at all is what the operator made the default, and a name can only be allowed where
//! everything else is denied.

pub(crate) mod error;
mod header_rules;
mod proxy;
mod targets;
#[cfg(test)]
mod tests;

use crate::config::network::ServerNetwork;
use error::{EgressError, at_most, cut};
use header_rules::HostRule;
use proxy::EgressProxy;
use sandboxvm_manager::{HeaderRuleSpec, NetworkSpec, Precedence, Reach, Rule, Target};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};
use targets::covers_all;

/// The maximum of E2B's API.
const MAX_DNS_SERVERS: usize = 10;

/// What a client says of its sandbox's way out. Absent is not the same as empty where it is read back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Egress {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allow_out: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deny_out: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dns_servers: Option<Vec<String>>,
    /// Headers that are set in requests to hosts. They grant nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rules: Option<BTreeMap<String, Vec<HostRule>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    egress_proxy: Option<EgressProxy>,
}

impl Egress {
    /// Returns the settings that these words mean, with what the client says of `internet` as a whole.
    ///
    /// # Errors
    /// Every [`EgressError`]. Whether the operator permits the settings is not checked here.
    pub(crate) fn spec(&self, internet: Option<bool>, operator: &ServerNetwork) -> Result<NetworkSpec, EgressError> {
        let (denied, own) = (self.denied()?, self.allowed()?);
        let denies_all = denied.iter().any(covers_all);
        if !denies_all && own.iter().any(|rule| matches!(rule.target(), Target::Domain(_))) {
            return Err(EgressError::DomainsNeedDenial);
        }
        let dns = self.dns()?;
        let header_rules = self.header_rules()?;
        let proxy = self.egress_proxy.as_ref().map(EgressProxy::spec).transpose()?;
        let denies_the_rest = denies_all || internet == Some(false);
        let usual = if denies_the_rest { Reach::Nothing } else { operator.reach };
        let reach = match usual {
            Reach::Nothing if !own.is_empty() => Reach::Listed,
            usual => usual,
        };
        let mut allow = own;
        let mut precedence = Precedence::Allow;
        if usual == Reach::Listed {
            // The rules are the operator's then, and what the client denies has to narrow them.
            precedence = if denied.is_empty() { Precedence::Allow } else { Precedence::Deny };
            allow.extend(operator.rules.iter().cloned());
        }
        Ok(NetworkSpec {
            reach,
            precedence,
            allow,
            deny: denied.into_iter().filter(|rule| !covers_all(rule)).collect(),
            // Where nothing is reached, no name is asked for either.
            dns: if reach == Reach::Nothing { Vec::new() } else { dns },
            header_rules: if reach == Reach::Nothing { Vec::new() } else { header_rules },
            proxy,
            limits: operator.permits.limits,
            ..NetworkSpec::default()
        })
    }

    /// Returns true if the client asks for a part of the network by itself.
    pub(crate) fn allows_something(&self) -> bool {
        self.allow_out.as_ref().is_some_and(|entries| !entries.is_empty())
    }

    /// Returns these words without the headers of rules and the login at the proxy, which a copy of the sandbox does not get:
    /// they are secrets of the original, as those that the guest has placeholders of.
    pub(crate) fn of_copy(&self) -> Self {
        Self { rules: None, egress_proxy: self.egress_proxy.as_ref().map(EgressProxy::of_copy), ..self.clone() }
    }

    /// Returns what a client reads back and what is recorded: all but the password and the certificate of a proxy. It has the
    /// values of headers, so it is for the key that owns the sandbox alone.
    pub(crate) fn shown(&self) -> Self {
        Self { egress_proxy: self.egress_proxy.as_ref().map(EgressProxy::shown), ..self.clone() }
    }

    /// Returns true if these words have values of headers or the password of a proxy: a file with them is overwritten before
    /// it is gone.
    pub(crate) fn has_secrets(&self) -> bool {
        let of_proxy = self.egress_proxy.as_ref().is_some_and(EgressProxy::has_password);
        of_proxy || self.rules.iter().flat_map(BTreeMap::values).flatten().any(|rule| rule.headers().next().is_some())
    }

    fn denied(&self) -> Result<Vec<Rule>, EgressError> {
        targets::denied(self.deny_out.as_deref().unwrap_or_default())
    }

    fn allowed(&self) -> Result<Vec<Rule>, EgressError> {
        targets::allowed(self.allow_out.as_deref().unwrap_or_default())
    }

    fn dns(&self) -> Result<Vec<IpAddr>, EgressError> {
        let texts = self.dns_servers.as_deref().unwrap_or_default();
        at_most("dnsServers", texts.len(), MAX_DNS_SERVERS)?;
        let parse = |text: &String| match text.parse::<Ipv4Addr>() {
            Ok(address) => Ok(address.into()),
            Err(_) => Err(EgressError::DnsServer(cut(text))),
        };
        texts.iter().map(parse).collect()
    }

    fn header_rules(&self) -> Result<Vec<HeaderRuleSpec>, EgressError> {
        self.rules.as_ref().map_or_else(|| Ok(Vec::new()), header_rules::header_rules)
    }
}
