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

    /// Returns the ports of the host's services that rules allow.
    pub(crate) fn host_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.allow.iter().filter_map(Rule::host_port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
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
}
