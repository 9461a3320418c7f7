//! What a sandbox is to reach, as a user asks for it.

use super::{
    proxy::{ProxyError, ProxySpec},
    rules,
    secrets::{self, HeaderRuleSpec, Kept, MAX_SECRETS, SecretKind, SecretSpec, ValueSource, access_key},
};
use sandboxvm_egress_policy::{
    name::{DomainName, DomainPattern},
    rule::Rule,
};
use sandboxvm_protocol::egress::{
    EgressLimits, EgressRequest, HostName, MAX_LIST, MAX_MESSAGE, MAX_RESOLVERS, NetworkSettings, Precedence, Reach,
    WIRE,
    settings::{MAX_HEADER_RULES, MAX_HEADERS},
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
    /// Secrets of which the guest has placeholders. TLS to their hosts is ended outside the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretSpec>,
    /// Headers that are set in requests to some hosts, where TLS is ended as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub header_rules: Vec<HeaderRuleSpec>,
    /// The proxy that carries its connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySpec>,
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
    /// A secret cannot be used.
    #[error("invalid secret {name:?}: {problem}")]
    Secret {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A header rule cannot be used.
    #[error("invalid header rule for {host:?}: {problem}")]
    HeaderRule {
        /// Its host.
        host: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The proxy cannot be used.
    #[error("invalid proxy: {0}")]
    Proxy(#[from] ProxyError),
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
            ("secrets", self.secrets.len(), MAX_SECRETS),
            ("header rules", self.header_rules.len(), MAX_HEADER_RULES),
        ];
        if let Some((what, count, max)) = lists.into_iter().find(|(_, count, max)| count > max) {
            return Err(NetworkSpecError::TooMany { what, count, max });
        }
        for HostName { name, .. } in &self.hosts {
            let named = name.parse::<DomainName>();
            named.map_err(|problem| NetworkSpecError::HostName { name: name.clone(), problem })?;
        }
        self.proxy.as_ref().map_or(Ok(()), ProxySpec::check)?;
        self.check_secrets()?;
        self.check_header_rules()?;
        let request = EgressRequest::Configure(Box::new(self.settings(&[], &Kept::default())));
        let mut frame = Vec::new();
        // Half of a message leaves room for the rest of what an egress process begins with.
        WIRE.append_message(&mut frame, &request, MAX_MESSAGE / 2).map_err(|_| NetworkSpecError::TooLong)
    }

    fn check_secrets(&self) -> Result<(), NetworkSpecError> {
        for (at, secret @ SecretSpec { name, hosts, value, kind, .. }) in self.secrets.iter().enumerate() {
            let fail = |problem: String| Err(NetworkSpecError::Secret { name: name.clone(), problem });
            if !is_variable(name) {
                return fail("its name must be that of an environment variable".to_owned());
            }
            let is_taken =
                |name: &str| self.secrets[..at].iter().any(|other| other.variables().any(|taken| taken == name));
            if secret.variables().any(is_taken) {
                return fail("there are two with this name".to_owned());
            }
            if let Some(problem) = kind.problem(name) {
                return fail(problem.to_owned());
            }
            if hosts.is_empty() || hosts.len() > MAX_HEADER_RULES {
                return fail(format!("it needs 1 to {MAX_HEADER_RULES} hosts"));
            }
            if let Some(problem) = hosts.iter().find_map(|host| not_a_host(host)) {
                return fail(problem);
            }
            let problem = match (kind, value) {
                (SecretKind::AccessKey { .. }, ValueSource::Given(value)) => access_key::value_problem(value.as_str()),
                _ => given_problem(value),
            };
            if let Some(problem) = problem {
                return fail(format!("its value cannot be in a header: {problem}"));
            }
        }
        Ok(())
    }

    fn check_header_rules(&self) -> Result<(), NetworkSpecError> {
        for (at, HeaderRuleSpec { host, headers }) in self.header_rules.iter().enumerate() {
            let fail = |problem: String| Err(NetworkSpecError::HeaderRule { host: host.clone(), problem });
            if let Some(problem) = not_a_host(host) {
                return fail(problem);
            }
            let is_for = |other: &HeaderRuleSpec| other.host.parse::<DomainPattern>() == host.parse();
            if self.header_rules[..at].iter().any(is_for) {
                return fail("there are two for this host".to_owned());
            }
            // Without headers, it keeps a wildcard's from its host.
            if headers.len() > MAX_HEADERS {
                return fail(format!("it has more than {MAX_HEADERS} headers"));
            }
            for (at, header) in headers.iter().enumerate() {
                if !is_header(&header.name) {
                    return fail(format!("{:?} is not a header that can be set", header.name));
                }
                if headers[..at].iter().any(|other| other.name.eq_ignore_ascii_case(&header.name)) {
                    return fail(format!("it sets the header {:?} twice", header.name));
                }
                if let Some(problem) = given_problem(&header.value) {
                    return fail(format!("invalid value of {}: {problem}", header.name));
                }
            }
        }
        Ok(())
    }

    /// Returns the settings of an egress process, with the networks that the operator opened and the
    /// values that are kept with the sandbox.
    pub(crate) fn settings(&self, opened: &[String], kept: &Kept) -> NetworkSettings {
        let mut secrets = kept.secrets(&self.secrets);
        let mut header_rules = Vec::new();
        for rule in &self.header_rules {
            match kept.header_rule(rule) {
                Ok(rule) => header_rules.push(rule),
                Err(refuses) => secrets.push(refuses),
            }
        }
        let texts = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
        NetworkSettings {
            reach: self.reach,
            precedence: self.precedence,
            allow: texts(&self.allow),
            deny: texts(&self.deny),
            opened: opened.to_vec(),
            hosts: self.hosts.clone(),
            dns: self.dns.clone(),
            header_rules,
            secrets,
            authority: kept.authority(),
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
        // A secret is one more thing that the guest can use. A header may be what restricts it at its host.
        let is_secret = |secret: &SecretSpec| before.secrets.contains(secret);
        self.reach == Reach::Nothing
            || rank(self.reach) <= rank(before.reach)
                && precedence
                && denies_as_much
                && allow
                && self.dns == before.dns
                && self.hosts == before.hosts
                && self.secrets.iter().all(is_secret)
                && self.header_rules == before.header_rules
                && self.proxy == before.proxy
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

/// Headers that frame a request or say where it goes.
const FRAMING: [&str; 10] = [
    "host",
    "connection",
    "content-length",
    "expect",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authorization",
    "proxy-authenticate",
];

fn is_header(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(is_token)
        && !FRAMING.contains(&name.to_ascii_lowercase().as_str())
}

fn is_variable(name: &str) -> bool {
    let is_begin = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.len() <= 128
        && name.bytes().next().is_some_and(is_begin)
        && name.bytes().all(|byte| is_begin(byte) || byte.is_ascii_digit())
}

fn not_a_host(host: &str) -> Option<String> {
    host.parse::<DomainPattern>().err().map(|problem| format!("invalid host {host:?}: {problem}"))
}

fn given_problem(value: &ValueSource) -> Option<&'static str> {
    match value {
        ValueSource::Given(value) => secrets::problem(value.as_str()),
        ValueSource::Kept | ValueSource::KeptAs(_) | ValueSource::File(_) => None,
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
            NetworkSpec { proxy: Some("socks5://a.example:1".parse().unwrap()), ..as_before.clone() },
        ] {
            assert!(!more.only_narrows(&listed, false), "{more:?}");
        }
        for more in [spec(Reach::Listed, &["a.example"], &[]), spec(Reach::Listed, &["host:22"], &["ads.example"])] {
            assert!(!more.only_narrows(&public, false), "{more:?}");
        }
        // What a proxy kept from the guest, it would reach without it.
        let proxied = NetworkSpec { proxy: Some("socks5://a.example:1".parse().unwrap()), ..listed.clone() };
        assert!(proxied.only_narrows(&proxied, true) && !listed.only_narrows(&proxied, true));
        let allow_wins = NetworkSpec { precedence: Precedence::Allow, ..public.clone() };
        let more = NetworkSpec { precedence: Precedence::Allow, ..fewer };
        assert!(!more.only_narrows(&allow_wins, false) && public.only_narrows(&allow_wins, false));
        let slow = NetworkSpec { limits: limits(5), ..listed.clone() };
        assert!(slow.only_narrows(&listed, true) && !listed.only_narrows(&slow, true));
    }

    #[test]
    fn secret_that_is_taken_away_only_narrows() {
        let secret = |name: &str, hosts: &[&str]| SecretSpec {
            name: name.to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            placeholder: "p".to_owned(),
            value: ValueSource::Kept,
            kind: SecretKind::Text,
        };
        let with = |secrets: &[SecretSpec]| NetworkSpec {
            reach: Reach::Listed,
            secrets: secrets.to_vec(),
            ..NetworkSpec::default()
        };
        let (a, b) = (secret("A", &["a.example"]), secret("B", &["b.example"]));
        let before = with(&[a.clone(), b.clone()]);
        assert!(before.only_narrows(&before, true));
        assert!(with(&[b]).only_narrows(&before, true) && with(&[]).only_narrows(&before, true));
        assert!(!before.only_narrows(&with(std::slice::from_ref(&a)), true));
        assert!(!with(&[secret("A", &["c.example"])]).only_narrows(&before, true));
        let of_a_file = SecretSpec { value: ValueSource::File("/token".into()), ..a };
        assert!(!with(&[of_a_file]).only_narrows(&before, true));
        // A header that is set may be what restricts the guest at its host.
        let header = secrets::HeaderSpec { name: "X-Key".into(), value: ValueSource::Kept };
        let rule = HeaderRuleSpec { host: "a.example".into(), headers: vec![header] };
        let ruled = NetworkSpec { header_rules: vec![rule], ..before.clone() };
        assert!(ruled.only_narrows(&ruled, true));
        assert!(!ruled.only_narrows(&before, true) && !before.only_narrows(&ruled, true));
        assert!(NetworkSpec { reach: Reach::Nothing, ..ruled }.only_narrows(&before, true));
    }
}
