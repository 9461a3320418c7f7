//! What the operator of a host permits the sandboxes of a home to ask for, and what they get from
//! the host. Where the user is the operator, everything is permitted.

pub(crate) mod present;

use crate::network::{
    proxy::ProxySpec,
    rules,
    spec::{NetworkSpec, NetworkSpecError, rank},
};
use ipnet::IpNet;
use sandboxvm_egress_policy::rule::Rule;
use sandboxvm_protocol::egress::{EgressLimits, MAX_RESOLVERS, Reach};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// The host's own list of resolvers (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;

/// What the operator provides and permits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkOperator {
    /// What sandboxes get from the host.
    pub provides: Provided,
    /// What they may ask for. `None` permits everything above the floor.
    pub permits: Option<Permitted>,
    /// The program of egress process and dialer. Only a supervisor needs it.
    pub program: Option<PathBuf>,
}

/// What the operator provides, which is recorded with each sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provided {
    /// Networks that rules may open although they are below the floor.
    #[serde(default)]
    pub opened: Vec<IpNet>,
    /// Resolvers, which may be below the floor. Without any, those of the host are used.
    #[serde(default)]
    pub resolvers: Vec<SocketAddr>,
    /// A file with certificates of authorities in PEM that are trusted in addition to those of the
    /// host, where TLS is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<PathBuf>,
    /// The proxy that carries the connections of every sandbox. It may be below the floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySpec>,
}

/// The most that a sandbox may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permitted {
    /// Without rules.
    pub reach: Reach,
    /// Each allow rule has to be within one of these. Not looked at if `reach` is public, except for
    /// services of the host, which are never part of what is public.
    #[serde(with = "rules")]
    pub allow: Vec<Rule>,
    /// Whether a sandbox may name other resolvers.
    pub resolvers: bool,
    /// Whether a sandbox may name another proxy. Written down only if not, for supervisors of a build
    /// that knew none.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub proxies: bool,
    /// Upper limits. A rate of 0 does not limit.
    pub limits: EgressLimits,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

impl Permitted {
    /// Checks a request of a tenant.
    ///
    /// # Errors
    /// [`NetworkSpecError::NotPermitted`] with what is not permitted.
    pub fn check(&self, spec: &NetworkSpec) -> Result<(), NetworkSpecError> {
        let refused = |what: String| Err(NetworkSpecError::NotPermitted(what));
        if rank(spec.reach) > rank(self.reach) {
            return refused(match spec.reach {
                Reach::Public => "the public internet".to_owned(),
                Reach::Nothing | Reach::Listed => "a network".to_owned(),
            });
        }
        if let Some(rule) = spec.allow.iter().find(|rule| !self.permits(rule)) {
            return refused(format!("the rule {rule}"));
        }
        if !self.resolvers && !spec.dns.is_empty() {
            return refused("resolvers other than its own".to_owned());
        }
        if !self.proxies && spec.proxy.is_some() {
            return refused("an upstream proxy other than its own".to_owned());
        }
        Ok(())
    }

    fn permits(&self, rule: &Rule) -> bool {
        self.reach == Reach::Public && rule.host_port().is_none()
            || self.allow.iter().any(|permitted| rule.is_within(permitted))
    }

    /// Returns `spec` without what is not permitted.
    pub(super) fn narrowed(&self, mut spec: NetworkSpec) -> NetworkSpec {
        if rank(spec.reach) > rank(self.reach) {
            spec.reach = self.reach;
        }
        spec.allow.retain(|rule| self.permits(rule));
        if !self.resolvers {
            spec.dns.clear();
        }
        if !self.proxies && spec.proxy.is_some() {
            // What was to go through the proxy alone must not go another way.
            spec.reach = Reach::Nothing;
        }
        spec.limits = self.limited(spec.limits);
        spec
    }

    /// Returns the limits of a sandbox that asks for `wanted`: the lower one of each.
    #[must_use]
    pub fn limited(&self, wanted: EgressLimits) -> EgressLimits {
        let rate = |own: u64, most: u64| match (own, most) {
            (0, limit) | (limit, 0) => limit,
            (own, most) => own.min(most),
        };
        let most = self.limits;
        EgressLimits {
            flows: wanted.flows.min(most.flows),
            flows_per_second: wanted.flows_per_second.min(most.flows_per_second),
            queries_per_second: wanted.queries_per_second.min(most.queries_per_second),
            bytes_out_per_second: rate(wanted.bytes_out_per_second, most.bytes_out_per_second),
            bytes_in_per_second: rate(wanted.bytes_in_per_second, most.bytes_in_per_second),
        }
    }
}

impl NetworkOperator {
    /// Checks a request, and returns it with the operator's limits.
    pub(crate) fn admit(&self, spec: &NetworkSpec) -> Result<NetworkSpec, NetworkSpecError> {
        spec.check()?;
        let Some(permits) = &self.permits else { return Ok(spec.clone()) };
        permits.check(spec)?;
        Ok(NetworkSpec { limits: permits.limited(spec.limits), ..spec.clone() })
    }
}

impl Provided {
    /// Returns the networks that are opened both here and by `present`, with its resolvers, its
    /// proxy and the authorities that it trusts.
    pub(super) fn held_to(&self, present: &Self) -> Self {
        let both = |own: &IpNet| {
            let own = *own;
            present.opened.iter().filter_map(move |net| match (net.contains(&own), own.contains(net)) {
                (true, _) => Some(own),
                (_, true) => Some(*net),
                (false, false) => None,
            })
        };
        let Self { opened: _, resolvers, trust, proxy } = present.clone();
        Self { opened: self.opened.iter().flat_map(both).collect(), resolvers, trust, proxy }
    }

    /// Returns the resolvers that a dialer asks: the operator's, else those of the host now. A host
    /// without a list has one on its loopback address, as the C library assumes.
    pub(crate) fn resolvers(&self) -> Vec<SocketAddr> {
        if !self.resolvers.is_empty() {
            return self.resolvers.clone();
        }
        let found = fs::read_to_string(Path::new(RESOLV_CONF)).map(|text| resolvers_in(&text)).unwrap_or_default();
        if found.is_empty() { vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))] } else { found }
    }
}

/// Returns the resolvers that a text in the format of resolv.conf(5) names. An address with a zone
/// is left out: the dialer has no interface to look it up in.
fn resolvers_in(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next().filter(|word| *word == "nameserver")?;
        words.next()?.parse::<IpAddr>().ok()
    });
    addresses.map(|address| SocketAddr::from((address, DNS_PORT))).take(MAX_RESOLVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::spec::tests::rules;
    use sandboxvm_protocol::egress::HostName;

    #[test]
    fn resolvers_are_read_from_a_resolv_conf() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\n nameserver 2001:db8::1 \n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 192.0.2.2\n";
        let found: Vec<String> = resolvers_in(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(resolvers_in(&"nameserver 192.0.2.1\n".repeat(99)).len(), MAX_RESOLVERS);
    }

    #[test]
    fn tenants_get_what_the_operator_permits() {
        let permits = Permitted {
            reach: Reach::Listed,
            allow: rules(&["*.example", "192.0.2.0/24:443", "host:5432"]),
            resolvers: false,
            proxies: false,
            limits: EgressLimits { flows: 10, bytes_in_per_second: 1000, ..EgressLimits::default() },
        };
        let spec = |allow: &[&str]| NetworkSpec { reach: Reach::Listed, allow: rules(allow), ..NetworkSpec::default() };
        let refusal = |spec: &NetworkSpec| permits.check(spec).unwrap_err().to_string();
        permits.check(&spec(&["a.example", "192.0.2.1:443", "host:5432"])).unwrap();
        assert_eq!(refusal(&spec(&["host:5433"])), "the operator does not permit the rule host:5433");
        assert_eq!(refusal(&spec(&["192.0.2.1"])), "the operator does not permit the rule 192.0.2.1");
        let public = NetworkSpec { reach: Reach::Public, ..spec(&[]) };
        assert_eq!(refusal(&public), "the operator does not permit the public internet");
        let dns = NetworkSpec { dns: vec![IpAddr::from([192, 0, 2, 1])], ..spec(&[]) };
        assert_eq!(refusal(&dns), "the operator does not permit resolvers other than its own");
        let proxy = Some("socks5://proxy.example:1080".parse().unwrap());
        let proxied = NetworkSpec { proxy, ..spec(&["a.example"]) };
        assert_eq!(refusal(&proxied), "the operator does not permit an upstream proxy other than its own");
        assert_eq!(permits.narrowed(proxied.clone()).reach, Reach::Nothing, "and nothing goes another way");
        let may = Permitted { proxies: true, ..permits.clone() };
        may.check(&proxied).unwrap();
        assert_eq!(may.narrowed(proxied.clone()), NetworkSpec { limits: may.limited(proxied.limits), ..proxied });
        assert!(!serde_json::to_string(&may).unwrap().contains("proxies"), "supervisors of older builds read it");

        let open = Permitted { reach: Reach::Public, allow: vec![], ..permits.clone() };
        open.check(&NetworkSpec { allow: rules(&["198.51.100.1"]), ..public }).unwrap();
        assert!(open.check(&spec(&["host:5432"])).is_err(), "services of the host are not public");

        let operator = NetworkOperator { permits: Some(permits), ..NetworkOperator::default() };
        let admitted = operator.admit(&spec(&["a.example"])).unwrap().limits;
        assert_eq!((admitted.flows, admitted.bytes_in_per_second, admitted.bytes_out_per_second), (10, 1000, 0));
        let hosts = vec![HostName { name: "..".into(), address: IpAddr::from([192, 0, 2, 1]) }];
        assert!(operator.admit(&NetworkSpec { hosts, ..spec(&[]) }).is_err());
    }
}
