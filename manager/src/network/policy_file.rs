//! A policy file: named sets of rules that `@name` stands for, and a policy that can be applied as a
//! whole. Its program reads it from TOML; this module may not open a file.

use super::{
    operator::Provided,
    proxy::{self, ProxyError, ProxySpec},
    spec::NetworkSpec,
};
use ipnet::IpNet;
use sandboxvm_egress_policy::rule::{Rule, RuleError};
use sandboxvm_protocol::egress::{HostName, Reach};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// What a policy file contains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyFile {
    /// What is reached without rules. Left out, it is what rules allow if there are any.
    pub net: Option<NamedReach>,
    /// What is allowed: rules and `@name` of sets.
    pub allow: Vec<String>,
    /// What is denied: rules and `@name` of sets.
    pub deny: Vec<String>,
    /// Resolvers in place of the host's.
    pub dns: Vec<IpAddr>,
    /// Names with fixed addresses.
    pub hosts: BTreeMap<String, IpAddr>,
    /// Named sets of rules.
    pub sets: BTreeMap<String, Vec<String>>,
    /// What the operator of the host provides. Only the file of the operator may say it.
    pub operator: Option<OperatorTable>,
}

/// What the operator of the host provides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OperatorTable {
    /// Networks that rules may open although they are below the floor.
    pub open: Vec<IpNet>,
    /// Resolvers in place of those of the host, as addresses with ports. They may be below the floor.
    pub resolvers: Vec<SocketAddr>,
    /// A file with certificates of authorities (PEM) that are trusted in addition to those of the
    /// host, where TLS is ended outside the guest.
    pub trust: Option<PathBuf>,
    /// The proxy that carries the connections of every sandbox, in its text form without a password. It
    /// may be below the floor.
    #[serde(deserialize_with = "proxy::of_configuration")]
    pub proxy: Option<ProxySpec>,
    /// A file with its password, as an absolute path.
    pub proxy_password_file: Option<PathBuf>,
}

impl OperatorTable {
    /// Returns what the operator provides.
    ///
    /// # Errors
    /// When the proxy cannot be used.
    pub fn provided(self) -> Result<Provided, ProxyError> {
        let Self { open, resolvers, trust, proxy, proxy_password_file } = self;
        let proxy = proxy.map(|proxy| proxy.of_operator(proxy_password_file)).transpose()?;
        Ok(Provided { opened: open, resolvers, trust, proxy })
    }
}

/// What a sandbox reaches before any rule is looked at, in the words of users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamedReach {
    /// No network card.
    None,
    /// What rules allow.
    Allow,
    /// The public internet.
    Public,
}

/// Why a text of a policy has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A text is not a rule.
    #[error("invalid rule {text:?}: {problem}")]
    Rule {
        /// The text.
        text: String,
        /// What is wrong.
        problem: RuleError,
    },
    /// No set has the name.
    #[error("invalid rule \"@{name}\": no set has this name{}", there_are(.known))]
    NoSet {
        /// The name.
        name: String,
        /// The names of the sets that there are.
        known: Vec<String>,
    },
    /// A set contains another set.
    #[error("invalid set {set:?}: it contains {text:?}, and a set contains only rules")]
    Nested {
        /// Name of the set.
        set: String,
        /// The text in it.
        text: String,
    },
}

fn there_are(sets: &[String]) -> String {
    if sets.is_empty() { String::new() } else { format!("; there are {}", sets.join(", ")) }
}

impl PolicyFile {
    /// Returns the rules that `texts` stand for. A text may be a list with commas.
    ///
    /// # Errors
    /// Every [`PolicyError`].
    pub fn rules<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<Vec<Rule>, PolicyError> {
        let mut rules: Vec<Rule> = Vec::new();
        let mut add = |rule: Rule| {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        };
        for text in texts.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()) {
            match text.strip_prefix('@') {
                None => add(parse(text)?),
                Some(name) => {
                    let Some(set) = self.sets.get(name) else {
                        let known = self.sets.keys().map(|name| format!("@{name}")).collect();
                        return Err(PolicyError::NoSet { name: name.to_owned(), known });
                    };
                    for text in set {
                        if text.starts_with('@') {
                            return Err(PolicyError::Nested { set: name.to_owned(), text: text.clone() });
                        }
                        add(parse(text)?);
                    }
                }
            }
        }
        Ok(rules)
    }

    /// Returns the network that the file describes, or `None` if it describes one without a card.
    ///
    /// # Errors
    /// Every [`PolicyError`].
    pub fn network(&self) -> Result<Option<NetworkSpec>, PolicyError> {
        let allow = self.rules(self.allow.iter().map(String::as_str))?;
        let deny = self.rules(self.deny.iter().map(String::as_str))?;
        let reach = match self.net {
            Some(NamedReach::None) => return Ok(None),
            Some(NamedReach::Public) => Reach::Public,
            Some(NamedReach::Allow) => Reach::Listed,
            None if allow.is_empty() => return Ok(None),
            None => Reach::Listed,
        };
        let hosts = self.hosts.iter().map(|(name, address)| HostName { name: name.clone(), address: *address });
        Ok(Some(NetworkSpec {
            reach,
            allow,
            deny,
            dns: self.dns.clone(),
            hosts: hosts.collect(),
            ..NetworkSpec::default()
        }))
    }
}

fn parse(text: &str) -> Result<Rule, PolicyError> {
    text.parse().map_err(|problem| PolicyError::Rule { text: text.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> PolicyFile {
        let sets = [("python", vec!["index.example", "files.example:443"]), ("nested", vec!["@python"])];
        let sets = sets.map(|(name, rules)| (name.to_owned(), rules.into_iter().map(str::to_owned).collect()));
        PolicyFile { sets: sets.into(), ..PolicyFile::default() }
    }

    fn texts(rules: &[Rule]) -> Vec<String> {
        rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn sets_and_lists_are_expanded_without_repeats() {
        let rules = file().rules(["@python,192.0.2.1", " index.example , ", "host:5432"]).unwrap();
        assert_eq!(texts(&rules), ["index.example", "files.example:443", "192.0.2.1", "host:5432"]);
    }

    #[test]
    fn unknown_sets_and_invalid_rules_are_named() {
        let refusal = |text: &str| file().rules([text]).unwrap_err().to_string();
        assert_eq!(refusal("@pyton"), "invalid rule \"@pyton\": no set has this name; there are @nested, @python");
        assert_eq!(
            refusal("@nested"),
            "invalid set \"nested\": it contains \"@python\", and a set contains only rules"
        );
        assert_eq!(
            refusal("host"),
            "invalid rule \"host\": a rule for a service of the host names one TCP port, as host:5432"
        );
        let none = PolicyFile::default().rules(["@x"]).unwrap_err().to_string();
        assert_eq!(none, "invalid rule \"@x\": no set has this name");
    }

    #[test]
    fn file_without_rules_describes_no_network() {
        assert_eq!(file().network(), Ok(None));
        let listed = PolicyFile { allow: vec!["@python".into()], ..file() }.network().unwrap().unwrap();
        assert_eq!((listed.reach, listed.allow.len()), (Reach::Listed, 2));
        let public = PolicyFile { net: Some(NamedReach::Public), deny: vec!["ads.example".into()], ..file() };
        assert_eq!(public.network().unwrap().unwrap().reach, Reach::Public);
        let none = PolicyFile { net: Some(NamedReach::None), allow: vec!["@python".into()], ..file() };
        assert_eq!(none.network(), Ok(None));
    }
}
