//! What a sandbox is to reach, as a user asks for it.

use super::rules;
use sandboxvm_egress_policy::{name::DomainName, rule::Rule};
use sandboxvm_protocol::egress::{
    EgressLimits, EgressRequest, HostName, MAX_LIST, MAX_MESSAGE, MAX_RESOLVERS, NetworkSettings, Precedence, Reach,
    WIRE,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a sandbox is to reach. The default is a network card behind which everything is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// What it reaches without rules.
    pub reach: Reach,
    /// Which list wins.
    #[serde(default)]
    pub precedence: Precedence,
    /// What is allowed.
    #[serde(default, with = "rules")]
    pub allow: Vec<Rule>,
    /// What is denied.
    #[serde(default, with = "rules")]
    pub deny: Vec<Rule>,
    /// Resolvers in place of the operator's. They are held to the floor.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Names with fixed addresses. They grant nothing: the address must be allowed.
    #[serde(default)]
    pub hosts: Vec<HostName>,
    /// Limits.
    #[serde(default)]
    pub limits: EgressLimits,
}

/// Why a sandbox cannot have such a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkSpecError {
    /// A list is too long.
    #[error("too many {what}: {count}, and the maximum is {max}")]
    TooMany {
        /// What the list has.
        what: &'static str,
        /// Its length.
        count: usize,
        /// Its maximum length.
        max: usize,
    },
    /// The settings do not fit a message to the egress process.
    #[error("the rules of the network are too long: all together they take more than {} KiB", MAX_MESSAGE >> 10)]
    TooLong,
    /// A name with a fixed address is not a domain name.
    #[error("invalid host name {name:?}: {problem}")]
    HostName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: sandboxvm_egress_policy::name::NameError,
    },
    /// The operator does not permit it.
    #[error("the operator does not permit {0}")]
    NotPermitted(String),
}

impl NetworkSpec {
    /// Checks what needs nothing of the host.
    ///
    /// # Errors
    /// Every [`NetworkSpecError`] except those of the operator.
    pub fn check(&self) -> Result<(), NetworkSpecError> {
        let lists = [
            ("allow rules", self.allow.len(), MAX_LIST),
            ("deny rules", self.deny.len(), MAX_LIST),
            ("host names", self.hosts.len(), MAX_LIST),
            ("resolvers", self.dns.len(), MAX_RESOLVERS),
        ];
        if let Some((what, count, max)) = lists.into_iter().find(|(_, count, max)| count > max) {
            return Err(NetworkSpecError::TooMany { what, count, max });
        }
        for HostName { name, .. } in &self.hosts {
            let named = name.parse::<DomainName>();
            named.map_err(|problem| NetworkSpecError::HostName { name: name.clone(), problem })?;
        }
        let request = EgressRequest::Configure(Box::new(self.settings(&[])));
        let mut frame = Vec::new();
        // Half of a message leaves room for the rest of what an egress process begins with.
        WIRE.append_message(&mut frame, &request, MAX_MESSAGE / 2).map_err(|_| NetworkSpecError::TooLong)
    }

    /// Returns the settings of an egress process, with the networks that the operator opened.
    pub(crate) fn settings(&self, opened: &[String]) -> NetworkSettings {
        let texts = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
        NetworkSettings {
            reach: self.reach,
            precedence: self.precedence,
            allow: texts(&self.allow),
            deny: texts(&self.deny),
            opened: opened.to_vec(),
            hosts: self.hosts.clone(),
            dns: self.dns.clone(),
            header_rules: Vec::new(),
            secrets: Vec::new(),
            limits: self.limits,
        }
    }

    /// Returns true if nothing is allowed by these settings that `before` did not allow. It may return
    /// false for settings that allow less in a way that it does not see. `opens` says whether networks
    /// below the floor are open, which rules reach and [`Reach::Public`] does not.
    pub(crate) fn only_narrows(&self, before: &Self, opens: bool) -> bool {
        let was_public = before.reach == Reach::Public && !opens;
        let was_allowed = |rule: &Rule| was_public && rule.host_port().is_none();
        let denies_as_much = before.deny.iter().all(|rule| self.deny.contains(rule));
        let precedence = self.precedence == before.precedence || self.precedence == Precedence::Deny;
        // With this precedence a rule that allows takes something out of those that deny.
        let may_add = before.deny.is_empty() || self.precedence == Precedence::Deny;
        let allow = self.allow.iter().all(|rule| before.allow.contains(rule) || may_add && was_allowed(rule));
        self.reach == Reach::Nothing
            || rank(self.reach) <= rank(before.reach)
                && precedence
                && denies_as_much
                && allow
                && self.dns == before.dns
                && self.hosts == before.hosts
                && limits_narrow(self.limits, before.limits)
    }

    /// Returns the ports of the host's services that rules allow.
    pub(crate) fn host_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.allow.iter().filter_map(Rule::host_port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// Returns a number that is higher the more a sandbox reaches without rules.
pub(super) const fn rank(reach: Reach) -> u8 {
    match reach {
        Reach::Nothing => 0,
        Reach::Listed => 1,
        Reach::Public => 2,
    }
}

fn limits_narrow(now: EgressLimits, before: EgressLimits) -> bool {
    // A rate of 0 does not limit.
    let rate = |now: u64, before: u64| before == 0 || now != 0 && now <= before;
    now.flows <= before.flows
        && now.flows_per_second <= before.flows_per_second
        && now.queries_per_second <= before.queries_per_second
        && rate(now.bytes_out_per_second, before.bytes_out_per_second)
        && rate(now.bytes_in_per_second, before.bytes_in_per_second)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn lists_and_texts_have_maximum_sizes() {
        let spec = NetworkSpec { allow: rules(&["index.example", "host:5432", "host:5432"]), ..NetworkSpec::default() };
        spec.check().unwrap();
        assert_eq!(spec.host_ports(), [5432]);
        let many = NetworkSpec { allow: vec![spec.allow[0].clone(); MAX_LIST + 1], ..NetworkSpec::default() };
        assert_eq!(
            many.check().unwrap_err().to_string(),
            format!("too many allow rules: {}, and the maximum is {MAX_LIST}", MAX_LIST + 1)
        );
        let long = format!("{}.{}.example", "a".repeat(63), "b".repeat(63));
        let long = NetworkSpec { allow: vec![long.parse().unwrap(); MAX_LIST], ..NetworkSpec::default() };
        assert_eq!(long.check(), Err(NetworkSpecError::TooLong));
        let hosts = vec![HostName { name: "a b".into(), address: IpAddr::from([192, 0, 2, 1]) }];
        let error = NetworkSpec { hosts, ..NetworkSpec::default() }.check().unwrap_err();
        assert!(matches!(error, NetworkSpecError::HostName { .. }), "{error}");
    }

    #[test]
    fn settings_that_allow_anything_more_do_not_only_narrow() {
        let spec = |reach, allow: &[&str], deny: &[&str]| NetworkSpec {
            reach,
            allow: rules(allow),
            deny: rules(deny),
            ..NetworkSpec::default()
        };
        let (public, listed) = (spec(Reach::Public, &[], &["ads.example"]), spec(Reach::Listed, &["a.example"], &[]));
        let nothing = spec(Reach::Nothing, &["host:5432"], &[]);
        for before in [&public, &listed, &nothing] {
            assert!(nothing.only_narrows(before, true) && before.only_narrows(before, true));
        }
        assert!(spec(Reach::Listed, &[], &[]).only_narrows(&listed, true));
        assert!(spec(Reach::Listed, &["a.example"], &["192.0.2.1"]).only_narrows(&listed, true));
        let fewer = spec(Reach::Listed, &["192.0.2.1"], &["ads.example", "b.example"]);
        assert!(fewer.only_narrows(&public, false) && !fewer.only_narrows(&public, true));
        let as_before = listed.clone();
        let limits = |bytes_in_per_second| EgressLimits { bytes_in_per_second, ..EgressLimits::default() };
        for more in [
            spec(Reach::Public, &["a.example"], &[]),
            // Only a rule with a port allows a protocol that shows no name.
            spec(Reach::Listed, &["a.example:443"], &[]),
            NetworkSpec { dns: vec![IpAddr::from([192, 0, 2, 1])], ..as_before.clone() },
            NetworkSpec {
                hosts: vec![HostName { name: "a.example".into(), address: IpAddr::from([192, 0, 2, 1]) }],
                ..as_before.clone()
            },
            NetworkSpec { precedence: Precedence::Allow, ..as_before.clone() },
        ] {
            assert!(!more.only_narrows(&listed, false), "{more:?}");
        }
        for more in [spec(Reach::Listed, &["a.example"], &[]), spec(Reach::Listed, &["host:22"], &["ads.example"])] {
            assert!(!more.only_narrows(&public, false), "{more:?}");
        }
        let allow_wins = NetworkSpec { precedence: Precedence::Allow, ..public.clone() };
        let more = NetworkSpec { precedence: Precedence::Allow, ..fewer };
        assert!(!more.only_narrows(&allow_wins, false) && public.only_narrows(&allow_wins, false));
        let slow = NetworkSpec { limits: limits(5), ..listed.clone() };
        assert!(slow.only_narrows(&listed, true) && !listed.only_narrows(&slow, true));
    }
}
